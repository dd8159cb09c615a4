//! One line of QMP, parsed. The lines of an epoch (`{"return": {}}`, `STOP`, `RESUME`) are
//! parsed without allocating.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

/// A line from QEMU.
#[derive(Debug)]
pub enum Line<'a> {
    /// The answer to a command.
    Reply {
        /// The id it was sent with; `None` for an error that QEMU could not attribute.
        id: Option<u64>,
        /// The answer.
        reply: Reply<'a>,
    },
    /// Something happened.
    Event(Event),
    /// The greeting of a new connection.
    Greeting {
        /// Whether commands may be sent ahead of the answers of earlier ones.
        out_of_band: bool,
    },
}

/// The answer to a command.
#[derive(Debug)]
pub enum Reply<'a> {
    /// It succeeded; JSON text of the value returned.
    Returned(&'a str),
    /// It failed.
    Refused {
        /// QEMU's error class.
        class: String,
        /// QEMU's text.
        text: String,
    },
}

/// An event of QEMU, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The vCPUs stopped.
    Stop,
    /// They run again.
    Resume,
    /// The machine was reset.
    Reset,
    /// The machine shut down.
    Shutdown {
        /// The guest asked for it.
        guest: bool,
        /// QEMU's word for the reason; empty if it gave none.
        reason: String,
    },
    /// The guest's kernel panicked and told QEMU.
    Panicked,
    /// The migration's status changed.
    Migration(MigrationStatus),
    /// Anything else.
    Other,
}

/// Where a migration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationStatus {
    /// On its way.
    Running,
    /// Done.
    Completed,
    /// It failed or was cancelled.
    Failed,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, rename = "return")]
    returned: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<ErrorBody<'a>>,
    // As raw text, since an optional `Cow` is always deserialized into an owned string.
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(default)]
    id: Option<u64>,
    #[serde(borrow, rename = "QMP")]
    greeting: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ErrorBody<'a> {
    #[serde(borrow)]
    class: Cow<'a, str>,
    #[serde(borrow)]
    desc: Cow<'a, str>,
}

#[derive(Default, Deserialize)]
struct EventData<'a> {
    #[serde(default)]
    guest: bool,
    #[serde(borrow)]
    reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    status: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct GreetingBody {
    #[serde(default)]
    capabilities: Vec<String>,
}

/// Parses one line, without its line end.
pub fn parse(line: &[u8]) -> Result<Line<'_>, String> {
    let envelope: Envelope<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if let Some(name) = envelope.event {
        return Ok(Line::Event(event(name.get().trim_matches('"'), envelope.data)));
    }
    if let Some(value) = envelope.returned {
        return Ok(Line::Reply { id: envelope.id, reply: Reply::Returned(value.get()) });
    }
    if let Some(error) = envelope.error {
        let reply = Reply::Refused { class: error.class.into_owned(), text: error.desc.into_owned() };
        return Ok(Line::Reply { id: envelope.id, reply });
    }
    if let Some(body) = envelope.greeting {
        let body: GreetingBody = serde_json::from_str(body.get()).map_err(|error| error.to_string())?;
        return Ok(Line::Greeting { out_of_band: body.capabilities.iter().any(|name| name == "oob") });
    }
    Err("neither reply, event nor greeting".into())
}

fn event(name: &str, data: Option<&RawValue>) -> Event {
    match name {
        "STOP" => return Event::Stop,
        "RESUME" => return Event::Resume,
        "RESET" => return Event::Reset,
        "GUEST_PANICKED" => return Event::Panicked,
        "SHUTDOWN" | "MIGRATION" => {}
        _ => return Event::Other,
    }
    let data =
        data.and_then(|data| serde_json::from_str::<EventData<'_>>(data.get()).ok()).unwrap_or_default();
    if name == "SHUTDOWN" {
        return Event::Shutdown { guest: data.guest, reason: data.reason.unwrap_or_default().into_owned() };
    }
    Event::Migration(match data.status.as_deref() {
        Some("completed") => MigrationStatus::Completed,
        Some("failed" | "cancelled") => MigrationStatus::Failed,
        _ => MigrationStatus::Running,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn hot_lines() {
        let line = parse(br#"{"return": {}, "id": 17}"#).unwrap();
        assert!(matches!(line, Line::Reply { id: Some(17), reply: Reply::Returned("{}") }));
        let stop = br#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#;
        assert!(matches!(parse(stop).unwrap(), Line::Event(Event::Stop)));
    }

    #[test]
    fn errors_and_events_with_data() {
        let line = parse(br#"{"id": 3, "error": {"class": "GenericError", "desc": "no \"x\""}}"#).unwrap();
        let Line::Reply { id: Some(3), reply: Reply::Refused { class, text } } = line else {
            panic!("{line:?}");
        };
        assert_eq!((class.as_str(), text.as_str()), ("GenericError", "no \"x\""));
        let shutdown = br#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}"#;
        let Line::Event(event) = parse(shutdown).unwrap() else { panic!("not an event") };
        assert_eq!(event, Event::Shutdown { guest: true, reason: "guest-shutdown".into() });
        let failed = br#"{"event": "MIGRATION", "data": {"status": "failed"}}"#;
        let Line::Event(event) = parse(failed).unwrap() else { panic!("not an event") };
        assert_eq!(event, Event::Migration(MigrationStatus::Failed));
    }

    #[test]
    fn greeting() {
        let line = parse(br#"{"QMP": {"version": {}, "capabilities": ["oob"]}}"#).unwrap();
        assert!(matches!(line, Line::Greeting { out_of_band: true }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn any_change_of_a_reply_is_an_answer_or_an_error(at in 0usize..60, byte in any::<u8>()) {
            let mut line = br#"{"event": "SHUTDOWN", "data": {"guest": true, "reason": "x"}}"#.to_vec();
            let at = at % line.len();
            line[at] = byte;
            let _ = parse(&line);
        }
    }
}
