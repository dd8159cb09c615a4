//! Real QEMU processes for tests: the guest of `scripts/guest-image` under TCG, or firmware alone.

#![allow(dead_code)] // each test binary uses a part

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use romulus_checkpoint::guest::Guest;
use romulus_checkpoint::standby::ImageRegion;
use romulus_checkpoint::{Extent, GuestLayout, PAGE_BYTES};
use romulus_qemu::qmp::Client;
use romulus_qemu::stream::ROM_REGION;
use romulus_transport::Memory;

/// Limit for everything that only takes long when something is wrong.
pub const LONG: Duration = Duration::from_secs(120);
/// Guest memory of the tests.
pub const GUEST_MIB: u64 = 192;

/// The folder with the guest's kernel and initramfs.
pub fn guest_image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace around the crate");
        let output = Command::new(root.join("scripts/guest-image"))
            .current_dir(root)
            .stderr(Stdio::inherit())
            .output()
            .expect("scripts/guest-image runs");
        assert!(output.status.success(), "scripts/guest-image failed");
        PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
    })
}

/// Waits until `condition` gives something.
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LONG;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {LONG:?}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// A directory and a file of guest RAM, removed at the end.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub ram: PathBuf,
}

impl Place {
    pub fn new(ram_mib: u64) -> Self {
        let dir =
            tempfile::Builder::new().prefix("romulus-qemu-test").tempdir_in("/dev/shm").expect("a directory");
        let ram = dir.path().join("ram");
        std::fs::File::create(&ram).and_then(|file| file.set_len(ram_mib << 20)).expect("a RAM file");
        Self { dir, ram }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The machine of the tests, with the RAM and serial port named; Linux or firmware alone.
pub fn machine(ram_mib: u64, ram: &str, serial: &str, linux: bool) -> Vec<String> {
    let mut command: Vec<String> = [
        "qemu-system-x86_64",
        "-nodefaults",
        "-machine",
        "q35,memory-backend=ram0",
        "-accel",
        "tcg",
        "-display",
        "none",
        "-vga",
        "none",
        "-no-shutdown",
    ]
    .map(String::from)
    .to_vec();
    let object = format!("memory-backend-file,id=ram0,size={ram_mib}M,mem-path={ram},share=on");
    command.extend(["-m".into(), ram_mib.to_string(), "-object".into(), object]);
    command.extend(["-serial".into(), serial.into()]);
    if linux {
        let image = guest_image();
        let line = "console=ttyS0 quiet panic=-1 romulus.check_mib=32 romulus.dirty_mib_per_second=4";
        for (option, value) in [
            ("-kernel", image.join("vmlinuz").display().to_string()),
            ("-initrd", image.join("initramfs").display().to_string()),
            ("-append", line.to_owned()),
        ] {
            command.extend([option.to_owned(), value]);
        }
    }
    command
}

/// A QEMU that a test started.
pub struct Vm {
    child: Child,
    pub place: Place,
    pub qmp: PathBuf,
    pub serial: PathBuf,
}

impl Vm {
    /// The machine of the tests with more arguments.
    pub fn start(linux: bool, more: &[&str]) -> Self {
        let place = Place::new(GUEST_MIB);
        let serial = place.path("serial");
        let mut command = machine(
            GUEST_MIB,
            &place.ram.display().to_string(),
            &format!("file:{}", serial.display()),
            linux,
        );
        command
            .extend(more.iter().map(|word| word.replace("{dir}", &place.dir.path().display().to_string())));
        Self::spawn(place, &command)
    }

    /// Any command; a QMP socket is added.
    pub fn spawn(place: Place, command: &[String]) -> Self {
        let qmp = place.path("qmp");
        let child = Command::new(&command[0])
            .args(&command[1..])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", qmp.display())])
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 starts");
        let serial = place.path("serial");
        let mut vm = Self { child, place, qmp, serial };
        eventually("QEMU opens its monitor", || {
            assert!(vm.child.try_wait().expect("a child").is_none(), "QEMU ended");
            // The socket is there a moment before anybody listens on it.
            UnixStream::connect(&vm.qmp).ok().map(drop)
        });
        vm
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a process id")
    }

    pub fn connect(&self) -> Client {
        Client::connect(&self.qmp, LONG).expect("QMP")
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("a child to kill");
        self.child.wait().expect("a child that ends");
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if self.is_alive() {
            self.kill();
        }
    }
}

/// What the guest's workload printed last: counter and corrupt pages.
pub fn workload(serial: &Path) -> Option<(u64, u64)> {
    let text = String::from_utf8_lossy(&std::fs::read(serial).ok()?).into_owned();
    let complete = &text[..text.rfind('\n')?];
    let line = complete.lines().rev().find(|line| line.starts_with("romulus counter="))?;
    let number = |key: &str| {
        let rest = line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        rest.and_then(|value| value.parse().ok())
    };
    Some((number("counter")?, number("corrupt")?))
}

/// How often the guest's first process said that it is up.
pub fn boots(serial: &Path) -> usize {
    std::fs::read(serial)
        .map_or(0, |bytes| String::from_utf8_lossy(&bytes).matches("romulus guest up").count())
}

/// A shadow image as a backup has it: a file for RAM, memory for the ROM region.
pub struct Shadow {
    pub place: Place,
    pub regions: Vec<ImageRegion>,
    layout: GuestLayout,
}

impl Shadow {
    pub fn of(layout: &GuestLayout) -> Self {
        let place = Place::new(0);
        let region = |region: &romulus_checkpoint::Region| {
            let path = place.path(&format!("image-{}", region.name));
            let length = region.pages * PAGE_BYTES;
            let file =
                std::fs::File::options().create(true).read(true).write(true).truncate(true).open(&path);
            let file = file.expect("an image file");
            file.set_len(length).expect("room for the image");
            let length = usize::try_from(length).expect("a length");
            let map = memmap2::MmapOptions::new().len(length).map_raw(&file).expect("the image maps");
            let base = std::ptr::NonNull::new(map.as_mut_ptr()).expect("an address");
            // SAFETY: the owner keeps the mapping of `length` bytes; nothing else refers into it.
            let memory = unsafe { Memory::new(base, length, std::sync::Arc::new(map)) };
            ImageRegion { name: region.name.clone(), path, memory }
        };
        let regions = layout.regions.iter().map(region).collect();
        Self { place, regions, layout: layout.clone() }
    }

    /// Copies all of the guest's memory, as the first round of a synchronization does.
    pub fn copy_all(&self, guest: &dyn Guest) {
        for (from, to) in guest.memory().iter().zip(&self.regions) {
            from.copy_to(0, &to.memory, 0, from.len_bytes());
        }
    }

    /// Copies pages of the guest.
    pub fn copy(&self, guest: &dyn Guest, dirty: &[Extent]) {
        let mut first = 0;
        for ((region, from), to) in self.layout.regions.iter().zip(guest.memory()).zip(&self.regions) {
            for extent in dirty {
                let begin = extent.first.0.max(first);
                let end = (extent.first.0 + extent.pages).min(first + region.pages);
                if begin < end {
                    let offset = usize::try_from((begin - first) * PAGE_BYTES).expect("an offset");
                    let length = usize::try_from((end - begin) * PAGE_BYTES).expect("a length");
                    from.copy_to(offset, &to.memory, offset, length);
                }
            }
            first += region.pages;
        }
    }

    /// Index of the first page that differs from the stopped guest, if one does.
    pub fn difference(&self, guest: &dyn Guest) -> Option<(String, u64)> {
        let (mut left, mut right) = ([0; PAGE_BYTES as usize], [0; PAGE_BYTES as usize]);
        for ((region, from), to) in self.layout.regions.iter().zip(guest.memory()).zip(&self.regions) {
            for page in 0..region.pages {
                let offset = usize::try_from(page * PAGE_BYTES).expect("an offset");
                from.read(offset, &mut left);
                to.memory.read(offset, &mut right);
                if left != right {
                    return Some((region.name.clone(), page));
                }
            }
        }
        None
    }

    pub fn rom(&self) -> &ImageRegion {
        self.regions.iter().find(|region| region.name == ROM_REGION).expect("a ROM region")
    }
}
