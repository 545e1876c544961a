//! Files of `/proc` and `/sys` that act on the machine: many name programs that the kernel runs as root.

use std::path::Path;

use postern_tests::{for_each_user, stdout};
use serde_json::json;

use crate::attack::{attack, attack_of_root};

/// Of these, what this machine has.
const FILES: [&str; 17] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sys/kernel/hotplug",
    "/proc/sys/kernel/hostname",
    "/proc/sys/fs/binfmt_misc/register",
    "/proc/sys/fs/suid_dumpable",
    "/proc/sys/vm/drop_caches",
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sysrq-trigger",
    "/proc/irq/default_smp_affinity",
    "/proc/mtrr",
    "/sys/kernel/uevent_helper",
    "/sys/kernel/mm/ksm/run",
    "/sys/power/state",
    "/sys/module/kernel/parameters/panic",
    "/sys/kernel/tracing/trace_marker",
    "/sys/kernel/mm/transparent_hugepage/enabled",
];

#[test]
fn nothing_that_acts_on_the_machine_is_opened_for_writing() {
    for_each_user(|world| {
        let files: Vec<_> = FILES.into_iter().filter(|path| Path::new(path).exists()).collect();
        assert!(files.len() > 4 && files.contains(&FILES[0]), "{files:?}");
        // Opening is all that outside is done.
        let open = |path: &str| format!("f = os.open('{path}', os.O_WRONLY); os.close(f)");
        let again = |path: &str| {
            format!(
                "f = os.open('{path}', os.O_PATH); os.close(os.open(f'/proc/self/fd/{{f}}', os.O_WRONLY))"
            )
        };
        let root = |path: &str| format!("os.close(os.open('/proc/self/root{path}', os.O_WRONLY))");
        let list: Vec<_> = files
            .iter()
            .flat_map(|path| {
                [
                    (format!("{path} by name"), open(path)),
                    (format!("{path} by handle"), again(path)),
                    (format!("{path} by root"), root(path)),
                ]
            })
            .collect();
        attack_of_root(world, &json!({}), &list);
    });
}

#[test]
fn no_file_at_all_of_the_machines_settings_is_writable() {
    for_each_user(|world| {
        // Whatever the kernel has more than the above; access(2) does not touch it. The one exception
        // is everybody's to open, and asks again when it is written.
        let list = [
            (
                "settings",
                "need(any(os.access(os.path.join(d, f), os.W_OK) for d, _, fs in os.walk('/proc/sys') for f in fs if f != 'ns_last_pid'))",
            ),
            (
                "devices and modules",
                "need(any(os.access(os.path.join(d, f), os.W_OK) for top in ('/sys/kernel', '/sys/module') for d, _, fs in os.walk(top) for f in fs))",
            ),
        ];
        attack_of_root(world, &json!({}), &list);
    });
}

#[test]
fn no_control_group_is_joined_made_or_changed() {
    for_each_user(|world| {
        let found = stdout(&world.plain("find", &["/sys/fs/cgroup", "-name", "cgroup.procs"]));
        let groups: Vec<_> = found.lines().map(|path| path.trim_end_matches("/cgroup.procs")).collect();
        assert!(!groups.is_empty());
        attack_of_root(
            world,
            &json!({ "groups": groups }),
            &[
                ("join", "for g in groups: os.close(os.open(f'{g}/cgroup.procs', os.O_WRONLY))"),
                ("make", "n = f'{groups[0]}/postern-{os.getpid()}'; os.mkdir(n); os.rmdir(n)"),
                (
                    "every file",
                    "need(any(os.access(os.path.join(d, f), os.W_OK) for d, _, fs in os.walk('/sys/fs/cgroup') for f in fs))",
                ),
            ],
        );
    });
}

#[test]
fn nobody_becomes_root_by_a_map_of_users() {
    for_each_user(|world| {
        let code = "own_namespaces(); need(os.getuid() == 0 and 'CapEff:\t0000000000000000' not in open('/proc/self/status').read())";
        attack(world, &json!({}), &[("a map", code)]);
    });
}
