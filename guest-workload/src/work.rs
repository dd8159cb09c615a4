//! Work whose speed shows what protection costs a guest: `work=NAME` runs one of these instead of
//! the pages that check themselves, and `counter` in the lines it prints counts units of it.
//!
//! | NAME | work | unit |
//! |---|---|---|
//! | `writer` | writes all of `check_mib` of memory, page after page, around and around | a page |
//! | `redis` | redis-server and redis-benchmark (4 clients, SET and GET of 1 KiB values) in the guest | a command |
//! | `compile` | tcc compiles generated C files, each by a process of its own | a file |
//!
//! All run as fast as they can. Nothing here reads a clock to count: a guest's clock stands still
//! while it is paused, so whoever reads the console takes the time.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::pages::PAGE_BYTES;

/// Between two lines on the console.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// Words of a page.
const WORDS: usize = PAGE_BYTES / 8;
/// C files that are compiled in turn.
const FILES: usize = 8;
/// Functions of each.
const FUNCTIONS: usize = 16;

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Sequential writes to memory.
    Writer,
    /// A key-value server and its client.
    Redis,
    /// A compiler.
    Compile,
}

impl std::str::FromStr for Work {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "writer" => Ok(Self::Writer),
            "redis" => Ok(Self::Redis),
            "compile" => Ok(Self::Compile),
            _ => Err("writer, redis and compile are known".into()),
        }
    }
}

static DONE: AtomicU64 = AtomicU64::new(0);

/// Works without end, and hands the count to `tell` again and again. Returns why it cannot go on.
pub fn run(work: Work, mib: u64, mut tell: impl FnMut(u64)) -> String {
    let mut redis = None;
    let begun = match work {
        Work::Writer => spawn("writer", move || write_memory(mib)),
        Work::Compile => spawn("compile", compile),
        Work::Redis => Redis::start().map(|started| redis = Some(started)),
    };
    if let Err(why) = begun {
        return format!("{work:?}: {why}");
    }
    loop {
        std::thread::sleep(TELL_EVERY);
        if let Some(redis) = &mut redis {
            match redis.commands() {
                Ok(commands) => DONE.store(commands, Ordering::Relaxed),
                Err(why) => return format!("redis: {why}"),
            }
        }
        tell(DONE.load(Ordering::Relaxed));
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = std::thread::Builder::new().name(name.into()).spawn(work);
    thread.map(drop).map_err(|why| format!("no thread: {why}"))
}

fn write_memory(mib: u64) {
    let pages = (mib << 20) as usize / PAGE_BYTES;
    let mut memory = vec![0_u64; pages * WORDS];
    for round in 1_u64.. {
        write_round(&mut memory, round, &DONE);
    }
}

/// Writes every word of every page, each round with words of its own.
fn write_round(memory: &mut [u64], round: u64, done: &AtomicU64) {
    let first = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for page in memory.chunks_exact_mut(WORDS) {
        (0..).zip(page.iter_mut()).for_each(|(index, word)| *word = first.wrapping_add(index));
        std::hint::black_box(&page);
        done.fetch_add(1, Ordering::Relaxed);
    }
}

/// A C file without headers: what a compiler does with it is all its own work.
fn source(number: usize) -> String {
    let function = |index: usize| {
        let seed = number * 1000 + index;
        format!(
            "struct s{index} {{ int a[{}]; double d; struct s{index} *next; }};\nstatic int f{index}(struct s{index} *s, int \
             n) {{\n  int i, sum = {seed};\n  for (i = 0; i < n; i++) {{\n    switch ((sum + i) & 7) {{\n    case 0: sum \
             += s->a[i % {}]; break;\n    case 1: sum ^= i * {seed}; break;\n    case 5: s->d += sum / 3.0; break;\n    \
             default: sum -= i;\n    }}\n    if (s->next && sum > {seed}) s = s->next;\n  }}\n  return sum;\n}}\n",
            index % 13 + 1,
            index % 13 + 1
        )
    };
    let mut text: String = (0..FUNCTIONS).map(function).collect();
    text.push_str(&format!("int entry{number}(int n) {{\n  int sum = 0;\n"));
    for index in 0..FUNCTIONS {
        text.push_str(&format!("  {{ struct s{index} s = {{0}}; sum += f{index}(&s, n); }}\n"));
    }
    text + "  return sum;\n}\n"
}

/// Ends the thread when a file cannot be written or compiled: the count then stands still, and the
/// console says why.
fn compile() {
    let path = |number: usize, end: &str| format!("/tmp/work-{number}.{end}");
    for number in 0..FILES {
        if let Err(why) = std::fs::write(path(number, "c"), source(number)) {
            println!("romulus workload ended: {}: {why}", path(number, "c"));
            return;
        }
    }
    for number in (0..FILES).cycle() {
        let (from, into) = (path(number, "c"), path(number, "o"));
        let status = Command::new("/bin/tcc").args(["-c", &from, "-o", &into]).status();
        if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
            println!("romulus workload ended: tcc -c {from}: {status:?}");
            return;
        }
        DONE.fetch_add(1, Ordering::Relaxed);
    }
}

/// A server, its client, and a connection that asks the server how much it has done.
struct Redis {
    reader: BufReader<TcpStream>,
}

impl Redis {
    fn start() -> Result<Self, String> {
        let arguments = ["--port", "6379", "--save", "", "--appendonly", "no", "--dir", "/tmp"];
        let quiet = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().map_err(|why| format!("{program}: {why}"))
        };
        quiet("/bin/redis-server", &arguments)?;
        let stream = (0..200)
            .find_map(|_| {
                std::thread::sleep(Duration::from_millis(50));
                TcpStream::connect("127.0.0.1:6379").ok()
            })
            .ok_or("redis-server does not listen on port 6379")?;
        stream.set_nodelay(true).map_err(|why| why.to_string())?;
        // More requests than any run lasts.
        let load = ["-q", "-t", "set,get", "-c", "4", "-d", "1024", "-r", "10000", "-n", "100000000"];
        quiet("/bin/redis-benchmark", &load)?;
        Ok(Self { reader: BufReader::new(stream) })
    }

    /// Commands that the server has processed.
    fn commands(&mut self) -> Result<u64, String> {
        let failed = |why: std::io::Error| why.to_string();
        self.reader.get_mut().write_all(b"INFO stats\r\n").map_err(failed)?;
        let mut line = String::new();
        self.reader.read_line(&mut line).map_err(failed)?;
        let length = line.trim().strip_prefix('$').and_then(|digits| digits.parse::<usize>().ok());
        let length = length.filter(|length| *length < 1 << 20).ok_or(format!("answered {line:?}"))?;
        let mut body = vec![0; length + 2];
        self.reader.read_exact(&mut body).map_err(failed)?;
        let text = String::from_utf8_lossy(&body);
        let found = text.lines().find_map(|line| line.strip_prefix("total_commands_processed:"));
        found.and_then(|digits| digits.trim().parse().ok()).ok_or("INFO names no commands".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_or_refused() {
        assert_eq!("redis".parse(), Ok(Work::Redis));
        assert!("sleep".parse::<Work>().unwrap_err().contains("writer"));
    }

    #[test]
    fn sources_differ_and_hold_all_functions() {
        assert_ne!(source(0), source(1));
        assert_eq!(source(3).matches("static int").count(), FUNCTIONS);
        assert_eq!(source(3).matches('{').count(), source(3).matches('}').count());
    }

    #[test]
    fn every_word_of_memory_changes_and_pages_are_counted() {
        let done = AtomicU64::new(0);
        let mut memory = vec![0; 4 * WORDS];
        write_round(&mut memory, 1, &done);
        assert!(memory.iter().all(|word| *word != 0));
        let before = memory.clone();
        write_round(&mut memory, 2, &done);
        assert!(memory.iter().zip(&before).all(|(now, before)| now != before));
        assert_eq!(done.into_inner(), 8);
    }
}
