//! The operator's terminals: typing into one's own, reading and writing others.

use std::process::Output;

use postern_tests::{World, finish, for_each_user, prefix, stdout, text};
use serde_json::json;

use crate::attack::Attacks;

/// Runs a shell's command on a terminal.
fn on_a_terminal(world: &World, shell: &str, command: &str) -> Output {
    let program = world.write("terminal.py", include_str!("terminal.py"));
    finish(world.plain_command("python3").arg(program).args([shell, "-fc", command]))
}

fn verdicts(world: &World, attacks: &[(&str, &str)], verdict: &str, shell: &str) -> String {
    let command = Attacks::new(world, &json!({}), attacks).command();
    let output = on_a_terminal(world, shell, &command);
    let out = stdout(&output);
    let said = |name: &str| out.contains(&format!("{name}\t{verdict}"));
    let all = attacks.iter().all(|(name, _)| said(name));
    assert!(all, "{shell}: not all {verdict}: {out} {}", text(&output.stderr));
    out
}

const ATTACKS: [(&str, &str); 4] = [
    (
        "type",
        "need(os.isatty(0)); [fcntl.ioctl(0, termios.TIOCSTI, bytes([c])) for c in b'typed\\n']; need(b'typed' in os.read(0, 100))",
    ),
    // Refused by number, also with bits above the 32 that the kernel looks at.
    (
        "type, by another number",
        "b = ctypes.create_string_buffer(b'z\\n'); [call(16, 0, (1 << 32) | termios.TIOCSTI, ctypes.addressof(b) + at) for at in (0, 1)]; need(b'z' in os.read(0, 100))",
    ),
    // No terminal but a console knows it, so that an answer of the driver is what success is.
    (
        "paste",
        "b = ctypes.create_string_buffer(b'\\x06')\ntry: call(16, 0, 0x541c, ctypes.addressof(b))\nexcept OSError as error: need(error.errno in (errno.ENOTTY, errno.EINVAL), error.errno)",
    ),
    ("write to another", "os.write(os.open(os.environ['OTHER'], os.O_RDWR | os.O_NOCTTY), b'evil')"),
];

#[test]
fn nothing_is_typed_and_other_terminals_are_not_there() {
    for_each_user(|world| {
        let outside = verdicts(world, &ATTACKS, "done", "bash");
        assert!(outside.contains("the other terminal got evil"), "{outside}");
        let shell = prefix().join("bin/posternsh");
        let inside = verdicts(world, &ATTACKS, "refused", shell.to_str().unwrap());
        assert!(inside.ends_with("the other terminal got"), "{inside}");
    });
}

#[test]
fn consoles_are_not_there() {
    for_each_user(|world| {
        let consoles = ["/dev/console", "/dev/tty0", "/dev/tty1", "/dev/ttyS0", "/dev/vcs"];
        let listed = format!("for f in {}; do test -e $f && echo $f; done; echo end", consoles.join(" "));
        let outside = stdout(&world.plain("sh", &["-c", &listed]));
        assert_ne!(outside, "end", "a machine has a console");
        assert_eq!(stdout(&world.session("", &listed)), "end");
    });
}
