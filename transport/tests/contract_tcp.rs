//! The tcp fabric keeps the contract of every fabric.

use std::net::Ipv4Addr;
use std::time::Duration;

use romulus_transport::contract::Subject;
use romulus_transport::tcp::{TcpConfig, TcpFabric};

fn subject(streams: usize) -> Subject {
    // The silence limit is far off, so that a busy machine is not taken for a dead peer.
    let config = TcpConfig { streams, silent_after: Duration::from_secs(60), ..TcpConfig::default() };
    Subject {
        listening: Box::new(TcpFabric::new(config.clone())),
        connecting: Box::new(TcpFabric::new(config)),
        address: (Ipv4Addr::LOCALHOST, 0).into(),
        through_bytes: 256 << 20,
        patience: Duration::from_secs(120),
    }
}

mod two_streams {
    romulus_transport::contract_tests!(super::subject(2));
}

mod one_stream {
    romulus_transport::contract_tests!(super::subject(1));
}

mod seven_streams {
    romulus_transport::contract_tests!(super::subject(7));
}
