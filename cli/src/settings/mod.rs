//! Settings: each is an option of the command line and a key of the settings file; the command
//! line wins over the file, the file over the default.

pub mod backup;
pub mod common;
pub mod protect;

use std::path::Path;

use crate::exit::Failure;

/// The settings file: one table a command, its keys the options' names with `_` for `-`.
#[derive(Debug, Default)]
pub struct SettingsFile {
    /// `[protect]`
    pub protect: protect::ProtectOptions,
    /// `[backup]`
    pub backup: backup::BackupOptions,
}

impl SettingsFile {
    /// Reads a settings file; without a path, all is left to options and defaults.
    pub fn read(path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(Self::default()) };
        let failed =
            |e: &dyn std::fmt::Display| Failure::usage(format!("settings file {}: {e}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|e| failed(&e))?;
        Self::parse(&text).map_err(|e| failed(&e))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let tables: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
        let mut settings = Self::default();
        for (name, table) in tables {
            let toml::Value::Table(table) = table else {
                return Err(format!("`{name}` stands outside of [protect] and [backup]"));
            };
            match name.as_str() {
                "protect" => {
                    let (own, common) = section(&name, table)?;
                    settings.protect = protect::ProtectOptions { common, ..own };
                }
                "backup" => {
                    let (own, common) = section(&name, table)?;
                    settings.backup = backup::BackupOptions { common, ..own };
                }
                _ => return Err(format!("unknown table [{name}]; there are [protect] and [backup]")),
            }
        }
        Ok(settings)
    }
}

/// Reads one table: a command's own keys, and those that both commands have.
fn section<Own: serde::de::DeserializeOwned>(
    name: &str,
    table: toml::Table,
) -> Result<(Own, common::CommonOptions), String> {
    let is_common = |key: &str| common::COMMON_KEYS.contains(&key);
    let (common, own): (toml::Table, toml::Table) = table.into_iter().partition(|(key, _)| is_common(key));
    let failed = |e: toml::de::Error| format!("[{name}]: {}", e.message());
    Ok((own.try_into().map_err(failed)?, common.try_into().map_err(failed)?))
}

/// Takes each value that is not set from the other struct.
macro_rules! fill_unset {
    ($target:expr, $source:expr, [$($field:ident),* $(,)?]) => {
        $( if $target.$field.is_none() { $target.$field = $source.$field; } )*
    };
}
pub(crate) use fill_unset;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_and_an_unknown_table_are_refused_by_name() {
        let error = SettingsFile::parse("[protect]\nintervall_ms = 3\n").unwrap_err();
        assert!(error.contains("intervall_ms"), "{error}");
        let error = SettingsFile::parse("[guard]\n").unwrap_err();
        assert!(error.contains("guard"), "{error}");
    }

    #[test]
    fn every_key_of_the_shipped_example_is_known() {
        let text = include_str!("../../../docs/romulus.toml");
        SettingsFile::parse(text).unwrap();
    }
}
