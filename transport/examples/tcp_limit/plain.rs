//! What the sockets themselves move: a thread for each stream on both ends, `sendmsg` from one
//! memory and `recv` into another, nothing else.

use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};

use romulus_transport::{Memory, plain};

use crate::{EXTENT_BYTES, Measured, Meter, Options};

/// Moves the total over fresh streams.
pub(crate) fn measure(options: &Options, source: &Memory, target: &Memory) -> Measured {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening");
    let address = listener.local_addr().expect("an address");
    let connect = |_| {
        let sender = TcpStream::connect(address).expect("connecting");
        sender.set_nodelay(true).expect("a socket option");
        (sender, listener.accept().expect("accepting").0)
    };
    let streams: Vec<(TcpStream, TcpStream)> = (0..options.streams).map(connect).collect();
    let each_bytes = options.total_bytes() / options.streams as u64;
    let extent_bytes = EXTENT_BYTES as usize;
    let meter = Meter::start();
    std::thread::scope(|scope| {
        for (index, (sender, receiver)) in streams.iter().enumerate() {
            let part = |memory: &Memory| {
                let part_bytes = memory.len_bytes() / options.streams;
                memory.part(index * part_bytes, part_bytes)
            };
            let (source, target) = (part(source), part(target));
            let spawn = |name: &str| std::thread::Builder::new().name(name.into());
            let send = move || {
                let sent = plain::send(sender, &source, extent_bytes, |sent| each_bytes - sent);
                assert_eq!(sent.expect("sending"), each_bytes);
                sender.shutdown(Shutdown::Write).expect("the end of the stream");
            };
            let receive = move || {
                let received = plain::receive(receiver, &target, extent_bytes);
                assert_eq!(received.expect("receiving"), each_bytes);
            };
            spawn("plain-send").spawn_scoped(scope, send).expect("a thread");
            spawn("plain-recv").spawn_scoped(scope, receive).expect("a thread");
        }
    });
    meter.finish(each_bytes * options.streams as u64)
}
