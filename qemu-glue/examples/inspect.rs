//! Prints what Romulus finds out about a running QEMU: `inspect QMP_SOCKET`.

use std::time::{Duration, Instant};

use romulus_qemu::discover::{Inventory, identity, ram, refusal};
use romulus_qemu::{Process, qmp::Client};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: inspect QMP_SOCKET")?;
    let mut client = Client::connect(path.as_ref(), Duration::from_secs(2))?;
    let process = Process::of_monitor(&client)?;
    let start = Instant::now();
    let inventory = Inventory::take(&mut client)?;
    println!("process {}: {} (asked in {:?})", process.pid(), process.exe()?, start.elapsed());
    let identity = identity::identity(&inventory);
    println!("{}", identity.hypervisor);
    for line in &identity.configuration {
        println!("  {line}");
    }
    match refusal::check(&inventory, refusal::Allowances::default()) {
        Ok(()) => println!("can be protected"),
        Err(why) => println!("cannot be protected: {why}"),
    }
    let regions = ram::regions(&inventory)?;
    for (region, mapping) in
        regions.iter().zip(ram::locate(&regions, &process.shared_mappings()?, inventory.address_of_zero)?)
    {
        let (_, memory) = process.map_read_only(&mapping)?;
        println!("region {} at {:#x}: {memory:?}", region.name, mapping.address);
    }
    Ok(())
}
