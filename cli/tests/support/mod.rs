//! What the tests with real guests share.

use std::path::{Path, PathBuf};
use std::process::Command;

use romulus::demo::qemu::{Machine, accelerator};
use romulus::demo::stage::Stage;

/// The program under test.
pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_romulus"))
}

/// The folder with the guest's kernel and initramfs, built if need be.
pub fn image_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("ROMULUS_GUEST_IMAGE") {
        return PathBuf::from(dir);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/guest-image");
    let output = Command::new(script).output().expect("running scripts/guest-image");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// A small guest on an empty stage.
pub fn stage() -> Stage {
    let machine = Machine {
        kind: "q35".into(),
        accelerator: accelerator(),
        memory_mib: 256,
        check_mib: 32,
        dirty_mib_per_second: 10.0,
        halt_after_s: None,
        networked: false,
        image_dir: image_dir(),
    };
    Stage::new(machine, program()).expect("a stage")
}
