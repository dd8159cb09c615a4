//! redis-benchmark, from Debian's redis-tools, beside the checking client.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use romulus::demo::network;

/// The counter that its test `incr` increments.
pub const KEY: &str = "counter:__rand_int__";
const REQUESTS: u64 = 4_000;
const CONNECTIONS: u64 = 4;

/// A benchmark under way; ended when dropped.
pub struct Benchmark(Child);

impl Benchmark {
    /// Begins in the calling thread's network.
    pub fn start() -> Self {
        let child = Command::new("redis-benchmark")
            .args(["-h", &network::GUEST.to_string(), "-t", "incr", "--csv"])
            .args(["-n", &REQUESTS.to_string(), "-c", &CONNECTIONS.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        Self(child.expect("redis-benchmark runs (apt-get install redis-tools)"))
    }

    /// Whether it is over.
    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().expect("its status").is_some()
    }

    /// Waits for its success; gives the requests made.
    pub fn finish(mut self, limit: Duration) -> u64 {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.0.try_wait().expect("its status") {
                break status;
            }
            assert!(Instant::now() < deadline, "redis-benchmark does not end");
            std::thread::sleep(Duration::from_millis(20));
        };
        let mut said = String::new();
        for mut pipe in self
            .0
            .stdout
            .take()
            .map(|pipe| Box::new(pipe) as Box<dyn std::io::Read>)
            .into_iter()
            .chain(self.0.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn std::io::Read>))
        {
            pipe.read_to_string(&mut said).expect("its words");
        }
        assert!(status.success() && said.contains("INCR"), "redis-benchmark: {status}: {said}");
        REQUESTS
    }
}

impl Drop for Benchmark {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
