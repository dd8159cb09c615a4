//! The standby's own configuration: the guest's under another name.

use serde_json::Value;

/// Behind a guest's name while its standby waits.
pub const SUFFIX: &str = "--standby";
/// Longest name of a domain that a standby is built for.
const MAX_NAME_BYTES: usize = 200;

/// A standby's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandbyConfig {
    /// The guest's name, which the standby gets when it takes over.
    pub guest: String,
    /// The name until then.
    pub name: String,
    /// The whole in JSON, as libxl reads it.
    pub json: String,
}

impl StandbyConfig {
    /// From the guest's configuration.
    ///
    /// # Errors
    /// Says what keeps a standby from being built from it.
    pub fn of_guest(json: &str) -> Result<Self, String> {
        let mut config: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let info = config.get_mut("c_info").and_then(Value::as_object_mut).ok_or("it has no c_info")?;
        let kind = info.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind != "pvh" {
            return Err(format!(
                "it is of type {kind:?}: a standby can be built of PVH domains (type = \"pvh\"), which have no device \
                 model"
            ));
        }
        let guest = info.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if guest.is_empty() || guest.len() > MAX_NAME_BYTES || guest.contains(['/', '\0']) {
            return Err(format!("its name {guest:?} is none"));
        }
        let name = format!("{guest}{SUFFIX}");
        info.insert("name".into(), name.clone().into());
        // The number that it has at the primary may be taken here.
        info.remove("domid");
        Ok(Self { guest, name, json: config.to_string() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_has_another_name_and_no_number_and_is_the_same_otherwise() {
        let text = r#"{"c_info":{"type":"pvh","name":"vm","uuid":"u","domid":7},"nics":[{"mac":"m"}]}"#;
        let config = StandbyConfig::of_guest(text).unwrap();
        assert_eq!((config.guest.as_str(), config.name.as_str()), ("vm", "vm--standby"));
        let value: Value = serde_json::from_str(&config.json).unwrap();
        let expected = r#"{"c_info":{"type":"pvh","name":"vm--standby","uuid":"u"},"nics":[{"mac":"m"}]}"#;
        assert_eq!(value, serde_json::from_str::<Value>(expected).unwrap());
    }

    #[test]
    fn what_no_standby_can_be_built_of_is_refused() {
        for text in [
            "",
            "{}",
            r#"{"c_info":{"type":"pvh"}}"#,
            r#"{"c_info":{"type":"pvh","name":"a/b"}}"#,
            r#"{"c_info":{"type":"hvm","name":"vm"}}"#,
        ] {
            assert!(StandbyConfig::of_guest(text).is_err(), "{text}");
        }
    }
}
