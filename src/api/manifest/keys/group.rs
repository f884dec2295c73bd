//! The keys of a document, of `config:`, of a host group and of its disks.
//! Out of scope: networks.

use super::super::super::provision::{MAX_KEYS, MAX_SECRETS};
use super::super::super::validate::MAX_GROUPS;
use super::super::super::vm_index::MAX_COUNT;
use super::Mapping::{Config, Disk, Document, HostGroup};
use super::limits::{
    AGENTS, DEFAULT_VCPU, GIB, HYPERVISORS, MACHINES, MAX_DNS_SERVERS, MIB, RESTARTS, UPDATES,
    VCPU, ram_range,
};
use super::{Change, Default, Format, Key, Mapping, Value, names};

/// For keys of `config:` that are the default of all groups.
const INHERITED: &[Mapping] = &[Config, HostGroup];
const ROOT: &[Mapping] = &[Document];
const GROUP: &[Mapping] = &[HostGroup];

/// Values that other keys do not share.
const KEY: Key = Key {
    name: "",
    mappings: GROUP,
    value: Value::Flag,
    default: Default::Text("none"),
    modes: &[],
    change: Change::Replaces,
    property: None,
    about: "",
    example: "null",
};

/// All of them.
pub const KEYS: &[Key] = &[
    Key {
        name: "apiVersion",
        mappings: ROOT,
        value: Value::Text(Format::ApiVersion),
        change: Change::None,
        about: "Version of the format; optional",
        example: "\"slice/v1\"",
        ..KEY
    },
    Key {
        name: "kind",
        mappings: ROOT,
        value: Value::Text(Format::Kind),
        change: Change::None,
        about: "Kind of the document; optional",
        example: "\"Config\"",
        ..KEY
    },
    Key {
        name: "config",
        mappings: ROOT,
        value: Value::One(Config),
        default: Default::Required,
        change: Change::None,
        about: "The groups and their defaults",
        example: "{\"host_groups\": []}",
        ..KEY
    },
    Key {
        name: "host_groups",
        mappings: &[Config],
        value: Value::List(&Value::One(HostGroup), Some(MAX_GROUPS)),
        default: Default::Required,
        change: Change::None,
        about: "The groups; `[]` for none",
        example: "[{\"name\": \"sandbox\"}]",
        ..KEY
    },
    Key {
        name: "name",
        value: Value::Text(Format::Name),
        default: Default::Required,
        change: Change::AnotherGroup,
        about: "Name of the group; its VMs are `<name>-1`, `<name>-2`, ..., and 63 characters is the maximum with that number",
        example: "\"sandbox\"",
        ..KEY
    },
    Key {
        name: "count",
        value: Value::Whole(0..=MAX_COUNT as u64, 1),
        default: Default::Whole(1),
        change: Change::Scales,
        about: "Number of VMs, `<name>-1` and so on; at most the number of /30 blocks in the range (256 in a /22) or of addresses. VMs on demand are additional",
        example: "2",
        ..KEY
    },
    Key {
        name: "vcpu",
        value: Value::Whole(VCPU, 1),
        default: Default::Whole(DEFAULT_VCPU as u64),
        about: "Virtual CPUs of each VM; the maximum of a VM on demand",
        example: "4",
        ..KEY
    },
    Key {
        name: "ram_mb",
        value: Value::Whole(ram_range(MIB), 1),
        default: Default::Text("4 GiB"),
        property: Some("memory"),
        about: "Memory of each VM in MiB, at most 16 TiB; the maximum of a VM on demand. At most one of `ram_mb`, `ram_gb` and `ram_bytes`",
        example: "512",
        ..KEY
    },
    Key {
        name: "ram_gb",
        value: Value::Whole(ram_range(GIB), 1),
        default: Default::Text("4 GiB"),
        property: Some("memory"),
        about: "Memory of each VM in GiB",
        example: "8",
        ..KEY
    },
    Key {
        name: "ram_bytes",
        value: Value::Whole(ram_range(1), MIB),
        default: Default::Text("4 GiB"),
        property: Some("memory"),
        about: "Memory of each VM in bytes, whole MiB",
        example: "536870912",
        ..KEY
    },
    Key {
        name: "dns_servers",
        value: Value::List(&Value::Text(Format::Address), Some(MAX_DNS_SERVERS)),
        about: "Name servers of the guest, passed in the kernel's `ip=`; not a reserved address; a warning if the lists deny it",
        example: "[\"1.1.1.1\", \"8.8.8.8\"]",
        ..KEY
    },
    Key {
        name: "hypervisor",
        mappings: INHERITED,
        value: Value::Choice(|| names(&HYPERVISORS)),
        default: Default::Text("`qemu` with a `kernel_file`, else `none`"),
        about: "The VMM: QEMU (7.2 or newer), Firecracker (1.10), Cloud Hypervisor (38), or `none`: you start a VMM yourself",
        example: "\"firecracker\"",
        ..KEY
    },
    Key {
        name: "qemu_bin",
        mappings: INHERITED,
        value: Value::Text(Format::File),
        default: Default::Text("the one in `PATH`"),
        about: "Program of QEMU, below a directory of `programs:`, writable by root only; executed, confined, to read its version",
        example: "\"/usr/bin/qemu-system-x86_64\"",
        ..KEY
    },
    Key {
        name: "firecracker_bin",
        mappings: INHERITED,
        value: Value::Text(Format::File),
        default: Default::Text("the one in `PATH`"),
        about: "Program of Firecracker, as `qemu_bin`",
        example: "\"/usr/local/bin/firecracker\"",
        ..KEY
    },
    Key {
        name: "jailer_bin",
        mappings: INHERITED,
        value: Value::Text(Format::File),
        default: Default::Text("the one in `PATH`, if it can be used"),
        about: "Firecracker's `jailer`, of the same release, as `qemu_bin`; for `firecracker`",
        example: "\"/usr/local/bin/jailer\"",
        ..KEY
    },
    Key {
        name: "cloud_hypervisor_bin",
        mappings: INHERITED,
        value: Value::Text(Format::File),
        default: Default::Text("the one in `PATH`"),
        about: "Program of Cloud Hypervisor, as `qemu_bin`",
        example: "\"/usr/local/bin/cloud-hypervisor\"",
        ..KEY
    },
    Key {
        name: "machine",
        mappings: INHERITED,
        value: Value::Choice(|| names(&MACHINES)),
        default: Default::Word("microvm"),
        about: "Machine type; for `qemu`",
        example: "\"q35\"",
        ..KEY
    },
    Key {
        name: "kernel_file",
        mappings: INHERITED,
        value: Value::Text(Format::File),
        about: "Kernel, below a directory of `images:`, no symbolic link; required unless `hypervisor: none`",
        example: "\"/var/lib/slice/images/vmlinuz\"",
        ..KEY
    },
    Key {
        name: "initrd_file",
        mappings: INHERITED,
        value: Value::Text(Format::File),
        about: "Initial RAM file system, below a directory of `images:`, no symbolic link",
        example: "\"/var/lib/slice/images/initrd.img\"",
        ..KEY
    },
    Key {
        name: "cmdline",
        mappings: INHERITED,
        value: Value::Text(Format::Cmdline),
        about: "Arguments for the guest's kernel, after those of `sliced`; an empty one of a group replaces that of `config:`",
        example: "\"root=/dev/vda1\"",
        ..KEY
    },
    Key {
        name: "image",
        mappings: INHERITED,
        value: Value::Text(Format::File),
        about: "Root disk, below a directory of `images:`: a raw file, of which each VM gets a copy, or a block device, used directly and read-only",
        example: "\"/var/lib/slice/images/debian.raw\"",
        ..KEY
    },
    Key {
        name: "storage_size",
        mappings: INHERITED,
        value: Value::Text(Format::Size),
        default: Default::Text("the image's size"),
        about: "Size of the copy; at least the image's size",
        example: "\"10G\"",
        ..KEY
    },
    Key {
        name: "persistent",
        mappings: INHERITED,
        value: Value::Flag,
        default: Default::Flag(false),
        about: "`true`: the copy is kept when the VM is deleted",
        example: "true",
        ..KEY
    },
    Key {
        name: "disks",
        value: Value::List(&Value::One(Disk), None),
        about: "Further raw files or block devices, below a directory of `images:`, used without a copy",
        example: "[{\"path\": \"/var/lib/slice/images/data.raw\"}]",
        ..KEY
    },
    Key {
        name: "restart",
        mappings: INHERITED,
        value: Value::Choice(|| names(&RESTARTS)),
        default: Default::Word("always"),
        change: Change::Live,
        about: "Whether a VMM that ends by itself is started again",
        example: "\"on-failure\"",
        ..KEY
    },
    Key {
        name: "graceful_shutdown",
        mappings: INHERITED,
        value: Value::Text(Format::GracePeriod),
        default: Default::Word("3s"),
        change: Change::Live,
        about: "How long to wait for a guest to power down on request; `0s` sends no request",
        example: "\"10s\"",
        ..KEY
    },
    Key {
        name: "vsock",
        mappings: INHERITED,
        value: Value::Flag,
        default: Default::Flag(true),
        about: "`false`: the VM has no vsock device, and so no guest access",
        example: "false",
        ..KEY
    },
    Key {
        name: "agent",
        mappings: INHERITED,
        value: Value::Choice(|| names(&AGENTS)),
        default: Default::Word("baked"),
        about: "Where `slice-agent` of the guest is from: `baked` into its image; `inject`: from this host, in an initrd that starts it before the init of the image, which is not changed; or `none`: it is not expected to answer",
        example: "\"none\"",
        ..KEY
    },
    Key {
        name: "userdata",
        mappings: INHERITED,
        value: Value::Text(Format::Script),
        property: Some("userdata"),
        about: "Script that the guest runs once as root, when it boots for the first time ([first boot](../guest-access.md#first-boot)). At most one of `userdata` and `userdata_file`; an empty one of a group replaces that of `config:`",
        example: "\"#!/bin/sh\\napt-get -y install nginx\\n\"",
        ..KEY
    },
    Key {
        name: "userdata_file",
        mappings: INHERITED,
        value: Value::Text(Format::File),
        property: Some("userdata"),
        about: "The same from a file of this host, below a directory of `images:`, no symbolic link, at most 256 KiB; read when a guest boots for the first time, so a change of its content replaces no VM",
        example: "\"/var/lib/slice/images/userdata.sh\"",
        ..KEY
    },
    Key {
        name: "ssh_keys",
        mappings: INHERITED,
        value: Value::List(&Value::Text(Format::SshKey), Some(MAX_KEYS)),
        change: Change::Live,
        about: "Public keys that may log in to the guest as its normal user and as root; those of the image are kept",
        example: "[\"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me@example\"]",
        ..KEY
    },
    Key {
        name: "secrets",
        mappings: INHERITED,
        value: Value::List(&Value::Text(Format::SecretName), Some(MAX_SECRETS)),
        change: Change::Live,
        about: "[Secrets](../guest-access.md#secrets) that the guest gets as files in `/run/slice/secrets`",
        example: "[\"registry-token\"]",
        ..KEY
    },
    Key {
        name: "update",
        value: Value::Choice(|| names(&UPDATES)),
        default: Default::Word("rolling"),
        change: Change::Live,
        about: "`rolling`: one VM at a time is replaced, and only if its replacement can run on this host (program, kernel and images are checked first; `describe` names what is missing); `on-delete`: when you delete it",
        example: "\"on-delete\"",
        ..KEY
    },
    Key {
        name: "network_name",
        mappings: INHERITED,
        value: Value::Text(Format::NetworkName),
        about: "A network of `/etc/cni/net.d`: the group is in CNI mode; not with a `network:` of another mode",
        example: "\"slicer\"",
        ..KEY
    },
    Key {
        name: "network",
        value: Value::One(Mapping::Network),
        default: Default::Text("mode `bridge`; CNI with a `network_name`"),
        about: "The network of the group's VMs",
        example: "{\"mode\": \"isolated\"}",
        ..KEY
    },
    Key {
        name: "cni",
        value: Value::One(Mapping::Cni),
        about: "Requests to the plugins; in CNI mode",
        example: "{\"aliases\": [\"www\"]}",
        ..KEY
    },
    Key {
        name: "path",
        mappings: &[Disk],
        value: Value::Text(Format::File),
        default: Default::Required,
        about: "Raw file or block device, below a directory of `images:`",
        example: "\"/dev/vg0/data\"",
        ..KEY
    },
    Key {
        name: "read_only",
        mappings: &[Disk],
        value: Value::Flag,
        default: Default::Flag(true),
        about: "`false`: the guest may write, and no other VM may use the disk; in a group of one VM only",
        example: "false",
        ..KEY
    },
];
