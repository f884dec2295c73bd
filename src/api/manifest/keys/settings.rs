//! The keys of the settings file, `/etc/slice/sliced.yaml`.
//! Out of scope: manifests.

use super::super::super::ssh_key::MAX_KEYS;
use super::limits::{DEFAULT_SSH_PORT, PORTS};
use super::{Change, Default, Format, Key, Mapping, Value};

const SETTINGS: &[Mapping] = &[Mapping::Settings];
const SSH: &[Mapping] = &[Mapping::Ssh];

/// All of them.
pub const KEYS: &[Key] = &[
    Key {
        name: "programs",
        mappings: SETTINGS,
        value: Value::List(&Value::Text(Format::Directory), None),
        default: Default::Text(
            "`/usr/bin`, `/usr/sbin`, `/bin`, `/sbin`, `/usr/local`, `/usr/lib`, `/usr/libexec`, `/opt`, `/nix/store`, `/run/current-system/sw/bin`",
        ),
        modes: &[],
        change: Change::None,
        property: None,
        about: "Directories from which programs (named in a manifest or found in `PATH`) may be run; must be writable by root only; `--programs` takes precedence",
        example: "[\"/usr/bin\", \"/opt/firecracker\"]",
    },
    Key {
        name: "images",
        mappings: SETTINGS,
        value: Value::List(&Value::Text(Format::Directory), None),
        default: Default::Text("`/var/lib/slice/images`"),
        modes: &[],
        change: Change::None,
        property: None,
        about: "Directories from which kernels, initrds, images and disks may be used; must be writable by root only; a block device by its directory, such as `/dev/vg0`; `--images` takes precedence",
        example: "[\"/var/lib/slice/images\", \"/dev/vg0\"]",
    },
    Key {
        name: "removal_grace",
        mappings: SETTINGS,
        value: Value::Text(Format::RemovalGrace),
        default: Default::Word("2s"),
        modes: &[],
        change: Change::None,
        property: None,
        about: "A group is deleted when its file, or the group in it, has been missing for this time; `--removal-grace` takes precedence",
        example: "\"10s\"",
    },
    Key {
        name: "ssh",
        mappings: SETTINGS,
        value: Value::One(Mapping::Ssh),
        default: Default::Text("no SSH server"),
        modes: &[],
        change: Change::None,
        property: None,
        about: "An SSH server for the guests of this host; `{}` for the defaults; requires `ssh_keys`",
        example: "{\"port\": 2222}",
    },
    Key {
        name: "ssh_keys",
        mappings: SETTINGS,
        value: Value::List(&Value::Text(Format::LoginKey), Some(MAX_KEYS)),
        default: Default::Text("none"),
        modes: &[],
        change: Change::None,
        property: None,
        about: "The keys that may log in to the SSH server, each to all VMs as any user of the guest; `[]` for none",
        example: "[\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti alice@example.com\"]",
    },
    Key {
        name: "bind_address",
        mappings: SSH,
        value: Value::Text(Format::ListenAddress),
        default: Default::Word("127.0.0.1"),
        modes: &[],
        change: Change::None,
        property: None,
        about: "The address on which the server listens",
        example: "\"0.0.0.0\"",
    },
    Key {
        name: "port",
        mappings: SSH,
        value: Value::Whole(PORTS, 1),
        default: Default::Whole(DEFAULT_SSH_PORT as u64),
        modes: &[],
        change: Change::None,
        property: None,
        about: "The TCP port on which the server listens",
        example: "2222",
    },
    Key {
        name: "host_key",
        mappings: SSH,
        value: Value::Text(Format::File),
        default: Default::Text("`ssh_host_ed25519_key` in the state directory"),
        modes: &[],
        change: Change::None,
        property: None,
        about: "The private key of the server (Ed25519 or ECDSA), in the format of OpenSSH, without a passphrase; created if the file does not exist",
        example: "\"/etc/ssh/ssh_host_ed25519_key\"",
    },
];
