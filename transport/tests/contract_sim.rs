//! The simulated fabric keeps the contract of every fabric.

use std::net::Ipv4Addr;
use std::time::Duration;

use romulus_transport::contract::Subject;
use romulus_transport::sim::{SimConfig, SimNetwork};

fn subject(seed: u64, config: SimConfig) -> Subject {
    let network = SimNetwork::auto(seed, config);
    Subject {
        listening: Box::new(network.fabric()),
        connecting: Box::new(network.fabric()),
        address: (Ipv4Addr::LOCALHOST, 0).into(),
        through_bytes: 64 << 20,
        patience: Duration::from_secs(120),
    }
}

mod as_it_comes {
    use super::{SimConfig, subject};
    romulus_transport::contract_tests!(subject(1, SimConfig::default()));
}

mod torn_apart {
    use super::{SimConfig, subject};
    romulus_transport::contract_tests!(subject(
        2,
        SimConfig {
            streams: 5,
            partial_percent: 60,
            early_departure_percent: 60,
            hold_percent: 20,
            ..SimConfig::default()
        }
    ));
}
