//! The operator's command: placeholders, and what a trial load changes in it.

use std::path::Path;

use romulus_host::facts::find_in_path;

use crate::error::QemuError;

/// What the placeholders of one QEMU become.
pub(super) struct Places<'a> {
    /// Name and path of each RAM block.
    pub(super) images: &'a [(String, String)],
    /// The QMP socket.
    pub(super) qmp: &'a Path,
    /// The private directory.
    pub(super) run: &'a Path,
}

/// Replaces the placeholders and adds what every standby has.
pub(super) fn expand(command: &[String], places: &Places<'_>) -> Result<Vec<String>, QemuError> {
    let mut has_qmp = false;
    let mut images_used = 0;
    let mut expanded = Vec::with_capacity(command.len() + 6);
    for argument in command {
        let mut argument = argument.replace("{run}", &places.run.to_string_lossy());
        if argument.contains("{qmp}") {
            has_qmp = true;
            argument = argument.replace("{qmp}", &places.qmp.to_string_lossy());
        }
        for (name, path) in places.images {
            let placeholder = format!("{{image:{name}}}");
            if argument.contains(&placeholder) || places.images.len() == 1 && argument.contains("{image}") {
                images_used += 1;
                argument = argument.replace(&placeholder, path).replace("{image}", path);
            }
        }
        if argument.contains("{image") {
            let names: Vec<_> = places.images.iter().map(|(name, _)| name.as_str()).collect();
            return Err(refused(format!(
                "{argument} names no RAM block of the guest; it has {} ({{image:NAME}})",
                names.join(", ")
            )));
        }
        expanded.push(argument);
    }
    check(&expanded)?;
    if images_used < places.images.len() {
        return Err(refused(format!(
            "the guest has {} RAM blocks and the command uses {images_used} of them: put {{image}} or \
             {{image:NAME}} as mem-path of each -object memory-backend-file",
            places.images.len()
        )));
    }
    if !has_qmp {
        expanded.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", places.qmp.display())]);
    }
    expanded.extend(["-incoming", "defer", "-S"].map(String::from));
    Ok(expanded)
}

fn refused(why: String) -> QemuError {
    QemuError::Refused(format!("standby command: {why}"))
}

/// Refuses what could start no standby of any guest.
pub(super) fn check_before(command: &[String]) -> Result<(), QemuError> {
    check(command)?;
    let program = &command[0];
    let is_there = match program.contains('/') {
        true => Path::new(program).is_file(),
        false => find_in_path(program).is_some(),
    };
    if !is_there {
        return Err(refused(format!(
            "there is no program {program}; its first line names QEMU, without arguments"
        )));
    }
    if !command.iter().any(|argument| argument.contains("{image")) {
        return Err(refused(
            "no {image} in it: that is to be the mem-path of -object memory-backend-file".into(),
        ));
    }
    Ok(())
}

fn check(command: &[String]) -> Result<(), QemuError> {
    if command.first().is_none_or(String::is_empty) {
        return Err(refused("it is empty".into()));
    }
    for (argument, value) in command.iter().zip(command[1..].iter().map(Some).chain([None])) {
        let option = option_of(argument);
        let json = value.is_some_and(|value| value.trim_start().starts_with('{'));
        let why = match option {
            Some("daemonize") => "-daemonize: Romulus has to be QEMU's parent; take it out",
            Some("incoming") => "-incoming is added by Romulus; take it out",
            Some("mem-prealloc") => {
                "-mem-prealloc may rewrite memory that the primary is writing; take it out"
            }
            Some("object") if json => "-object in JSON: write it as -object KIND,id=ID,KEY=VALUE,...",
            Some("netdev") if json => "-netdev in JSON: write it as -netdev KIND,id=ID,KEY=VALUE,...",
            Some("net") if value.is_none_or(|value| value != "none") => {
                "-net joins its cards and back ends by a hub, of which a trial load cannot take them; write -netdev \
                 KIND,id=ID and -device CARD,netdev=ID, or -nic"
            }
            _ if argument.split(',').any(preallocates) => {
                "prealloc=on may rewrite memory that the primary is writing; take it out"
            }
            _ => continue,
        };
        return Err(refused(why.into()));
    }
    Ok(())
}

/// The option that an argument is, without its dashes.
fn option_of(argument: &str) -> Option<&str> {
    argument.strip_prefix('-').map(|rest| rest.trim_start_matches('-'))
}

/// Whether this field of an option asks for memory ahead of its use, in any of the spellings that QEMU
/// takes for on.
fn preallocates(field: &str) -> bool {
    match field.split_once('=') {
        Some(("prealloc", value)) => !matches!(value, "off" | "no" | "false" | "n"),
        _ => field == "prealloc",
    }
}

/// The command for a trial load: the same machine over a private view of the image, with nothing
/// of it reaching the world and nothing taken from the prepared standby.
pub(super) fn for_trial(command: &[String]) -> Vec<String> {
    let mut trial = Vec::with_capacity(command.len());
    let mut arguments = command.iter();
    let mut hub = 0;
    while let Some(argument) = arguments.next() {
        match option_of(argument) {
            Some(
                "mon" | "monitor" | "qmp" | "qmp-pretty" | "vnc" | "spice" | "gdb" | "pidfile" | "D"
                | "display",
            ) => {
                arguments.next();
            }
            Some("s" | "nographic") => {}
            Some(name @ ("chardev" | "serial" | "parallel" | "debugcon" | "netdev" | "nic")) => {
                trial.push(argument.clone());
                if let Some(value) = arguments.next() {
                    trial.push(match name {
                        "chardev" => silent_chardev(value),
                        "netdev" | "nic" => unconnected(value, &mut hub),
                        _ if value.starts_with("chardev:") || value == "none" => value.clone(),
                        _ => "null".into(),
                    });
                }
            }
            Some("object") => {
                trial.push(argument.clone());
                trial.extend(arguments.next().map(|value| private(value)));
            }
            _ => trial.push(argument.clone()),
        }
    }
    trial.extend(["-display", "none", "-monitor", "none"].map(String::from));
    trial
}

/// The value of `key` in `kind,key=value,...`.
fn field<'a>(value: &'a str, key: &str) -> Option<&'a str> {
    value.split(',').find_map(|field| field.strip_prefix(key)?.strip_prefix('='))
}

/// The kind in `kind,key=value,...` or `name=kind,key=value,...`.
fn kind<'a>(value: &'a str, name: &str) -> &'a str {
    field(value, name).unwrap_or_else(|| value.split(',').next().unwrap_or_default())
}

fn private(object: &str) -> String {
    if !kind(object, "qom-type").starts_with("memory-backend-") {
        return object.to_owned();
    }
    let kept: Vec<&str> = object.split(',').filter(|field| !field.starts_with("share=")).collect();
    format!("{},share=off", kept.join(","))
}

fn silent_chardev(value: &str) -> String {
    match field(value, "id") {
        Some(id) => format!("null,id={id}"),
        None => "null".into(),
    }
}

/// A back end of the same kind where the guest can tell kinds apart (a tap's offloads, the state
/// of `user`), joined to nothing.
fn unconnected(value: &str, hub: &mut u32) -> String {
    let kept = |keys: &[&str]| {
        let keep = |field: &&str| {
            keys.iter().any(|key| field.strip_prefix(key).is_some_and(|rest| rest.starts_with('=')))
        };
        value.split(',').filter(keep).fold(String::new(), |all, field| all + "," + field)
    };
    match kind(value, "type") {
        "none" => value.to_owned(),
        "tap" | "bridge" => {
            let fields = kept(&["id", "model", "mac", "vhost", "queues", "vnet_hdr", "sndbuf"]);
            format!("tap{fields},script=no,downscript=no")
        }
        "user" => format!("user{},restrict=on", kept(&["id", "model", "mac", "net", "ipv4", "ipv6"])),
        _ => {
            *hub += 1;
            format!("hubport{},hubid={}", kept(&["id", "model", "mac"]), 1000 + *hub)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn expanded(text: &str, images: &[(&str, &str)]) -> Result<String, String> {
        let images: Vec<_> = images.iter().map(|(name, path)| (name.to_string(), path.to_string())).collect();
        let places = Places { images: &images, qmp: Path::new("/run/q"), run: Path::new("/run") };
        expand(&words(text), &places).map(|all| all.join(" ")).map_err(|error| error.to_string())
    }

    #[test]
    fn placeholders() {
        let one = expanded("qemu -object f,mem-path={image} -serial unix:{run}/s", &[("ram0", "/dev/shm/i")]);
        assert_eq!(
            one.unwrap(),
            "qemu -object f,mem-path=/dev/shm/i -serial unix:/run/s -qmp unix:/run/q,server=on,wait=off -incoming \
             defer -S"
        );
        let two = expanded("qemu {image:a} {image:b} -qmp unix:{qmp}", &[("a", "/A"), ("b", "/B")]);
        assert_eq!(two.unwrap(), "qemu /A /B -qmp unix:/run/q -incoming defer -S");
    }

    #[test]
    fn commands_that_cannot_serve() {
        let image = [("ram0", "/i")];
        assert!(expanded("", &image).unwrap_err().contains("empty"));
        assert!(expanded("qemu", &image).unwrap_err().contains("uses 0"));
        assert!(expanded("qemu {image:x}", &image).unwrap_err().contains("it has ram0"));
        assert!(expanded("qemu {image}", &[("a", "/A"), ("b", "/B")]).unwrap_err().contains("a, b"));
        assert!(expanded("qemu {image} -daemonize", &image).unwrap_err().contains("-daemonize"));
        for prealloc in ["prealloc=on", "prealloc=yes", "prealloc=true", "prealloc=y", "prealloc"] {
            let command = format!("qemu -object f,mem-path={{image}},{prealloc},share=on");
            assert!(expanded(&command, &image).unwrap_err().contains("prealloc=on"), "{prealloc}");
        }
        expanded("qemu -object f,mem-path={image},prealloc=off,prealloc-threads=2 -net none", &image)
            .unwrap();
        let hub = expanded("qemu {image} -net nic -net tap,ifname=tap0", &image).unwrap_err();
        assert!(hub.contains("-netdev KIND"), "{hub}");
        for option in ["-object", "--netdev"] {
            let command = format!(r#"qemu {{image}} {option} {{"qom-type":"x"}}"#);
            assert!(expanded(&command, &image).unwrap_err().contains("in JSON"), "{option}");
        }
    }

    #[test]
    fn commands_that_serve_no_guest_are_refused_early() {
        let refusal = |text: &str| check_before(&words(text)).map_err(|error| error.to_string());
        assert_eq!(refusal("sh {image}"), Ok(()));
        assert_eq!(refusal("/bin/sh mem-path={image:ram0}"), Ok(()));
        assert!(refusal("").unwrap_err().contains("empty"));
        assert!(refusal("no-such-qemu {image}").unwrap_err().contains("no program no-such-qemu"));
        assert!(refusal("/no/such/qemu {image}").unwrap_err().contains("/no/such/qemu"));
        assert!(refusal("sh -m 512").unwrap_err().contains("{image}"));
        assert!(refusal("sh {image} -daemonize").unwrap_err().contains("-daemonize"));
    }

    #[test]
    fn a_trial_is_private_and_joined_to_nothing() {
        let command = words(
            "qemu -m 512 -object memory-backend-file,id=ram0,size=1G,mem-path={image},share=on -serial \
             unix:{run}/s,server -netdev tap,id=n0,ifname=tap7,script=/x,vhost=on -netdev user,id=n1,hostfwd=tcp::1-:2 \
             -netdev socket,id=n2,listen=:1 -nic tap,ifname=tap8,model=e1000,mac=52:54:00:00:00:01 -device \
             virtio-net-pci,netdev=n0 -chardev socket,id=c,path=/x -qmp unix:{qmp} -pidfile /p -vnc :1",
        );
        assert_eq!(
            for_trial(&command).join(" "),
            "qemu -m 512 -object memory-backend-file,id=ram0,size=1G,mem-path={image},share=off -serial null -netdev \
             tap,id=n0,vhost=on,script=no,downscript=no -netdev user,id=n1,restrict=on -netdev \
             hubport,id=n2,hubid=1001 -nic tap,model=e1000,mac=52:54:00:00:00:01,script=no,downscript=no -device \
             virtio-net-pci,netdev=n0 -chardev null,id=c -display none -monitor none"
        );
        let named =
            words("qemu -object id=ram0,share=on,qom-type=memory-backend-memfd -netdev id=n0,type=tap,fd=3");
        assert_eq!(
            for_trial(&named).join(" "),
            "qemu -object id=ram0,qom-type=memory-backend-memfd,share=off -netdev tap,id=n0,script=no,downscript=no \
             -display none -monitor none"
        );
    }
}
