//! A primary and a backup as two processes of the real program, over tcp on the loopback.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::Value;

/// Nothing in these tests takes nearly as long.
const PATIENCE: Duration = Duration::from_secs(120);

/// One process; killed when dropped.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    json: PathBuf,
}

impl Process {
    /// Starts `romulus-perf` with these arguments, and `--json`.
    pub fn start(folder: &tempfile::TempDir, name: &str, arguments: &[&str]) -> Self {
        let json = folder.path().join(format!("{name}.json"));
        let mut child = Command::new(env!("CARGO_BIN_EXE_romulus-perf"))
            .args(arguments)
            .arg("--json")
            .arg(&json)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stdout: ChildStdout = child.stdout.take().expect("a pipe");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                println!("{line}");
                // The test may have ended.
                let _ = sender.send(line);
            }
        });
        Self { child, lines, json }
    }

    /// Waits for a line that begins like this; the rest of it.
    pub fn expect_line(&self, beginning: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("no line `{beginning}`: {error}"));
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.trim().to_owned();
            }
        }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("it can be killed");
    }

    /// Its exit status.
    pub fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }

    /// What it wrote to `--json`.
    pub fn result(&self) -> Value {
        let text = std::fs::read_to_string(&self.json).expect("a report");
        let report: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(report["program"], "romulus-perf");
        let run = &report["runs"][0];
        for field in ["kernel", "cpu", "revision"] {
            assert!(run["machine"][field].is_string(), "{report}");
        }
        run["result"].clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two hosts.
pub struct Pair {
    pub folder: tempfile::TempDir,
    pub backup: Process,
    pub primary: Process,
}

impl Pair {
    /// Starts both, as patient with each other as a busy machine asks for. `file`: they share an
    /// arbiter.
    pub fn start(file: bool, backup: &[&str], primary: &[&str]) -> Self {
        let patient = ["--suspect-ms", "40000", "--silent-ms", "30000"];
        let more = ["--suspect-ms", "30000", "--silent-ms", "30000"];
        Self::with(file, &[&patient, backup].concat(), &[&more, primary].concat())
    }

    /// Starts both; the backup takes over from a primary that was silent for 2 s.
    pub fn start_watchful(file: bool, backup: &[&str], primary: &[&str]) -> Self {
        let short = ["--suspect-ms", "2000", "--silent-ms", "3000"];
        let shorter = ["--suspect-ms", "1500", "--silent-ms", "3000"];
        Self::with(file, &[&short, backup].concat(), &[&shorter, primary].concat())
    }

    fn with(file: bool, backup: &[&str], primary: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let arbiter = match file {
            true => format!("file:{}/", folder.path().display()),
            false => "none".to_owned(),
        };
        let hold = folder.path().join("go").display().to_string();
        let common = ["--arbiter", &arbiter];
        let arguments: Vec<&str> = [&["backup", "--listen", "127.0.0.1:0"], &common[..], backup].concat();
        let arguments: Vec<&str> = arguments
            .into_iter()
            .map(|argument| if argument == "HOLD" { &*hold } else { argument })
            .collect();
        let backup = Process::start(&folder, "backup", &arguments);
        let address = backup.expect_line("listening at ");
        let small = ["--guest-mib", "32", "--dirty-pages-per-epoch", "200", "--interval-ms", "10"];
        let arguments: Vec<&str> =
            [&["primary", "--backup", &*address], &common[..], &small, primary].concat();
        let primary = Process::start(&folder, "primary", &arguments);
        Self { folder, backup, primary }
    }
}
