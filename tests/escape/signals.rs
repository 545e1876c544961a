//! Signals to processes outside, of the same user.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use postern_tests::{World, eventually, finish, for_each_user, stdout, text};
use serde_json::json;

use crate::attack::{Attacks, Running, Waiting, attack_handed, has_root, running};

/// A script that says so in `hit` when it is signalled.
fn sensitive(world: &World) -> String {
    let outside = world.outside.display();
    format!("trap 'echo hit > {outside}/hit' USR1; echo > {outside}/up; while :; do sleep 0.05; done")
}

fn victim(world: &World, start: impl FnOnce(&mut Command) -> &mut Command) -> Running {
    let started =
        running(start(world.plain_command("sh").args(["-c", &sensitive(world)]).stderr(Stdio::null())));
    eventually("it has set its trap", || world.outside.join("up").exists());
    started
}

/// Whether the victim has been hit.
const HIT: &str = "
for _ in range(10):
    time.sleep(0.05)
    if os.path.exists(f'{outside}/hit'): break
need(os.path.exists(f'{outside}/hit'))
# One signal may be two.
time.sleep(0.2)
os.unlink(f'{outside}/hit')";

#[test]
fn no_process_outside_is_signalled_by_its_number() {
    for_each_user(|world| {
        let victim = victim(world, |command| command);
        let mut session = Waiting::start(world, &mut world.postern(), "eval $(<../order)");
        let front = i64::from(session.front.0.id());
        let given = json!({ "victim": victim.0.id(), "posterns": [session.server, session.spawner, front] });
        let signal = |how: &str| format!("{how}{HIT}");
        let attacks = [
            ("kill", signal("os.kill(victim, 10)")),
            ("a thread", signal("call('tgkill', victim, victim, 10)")),
            ("by descriptor", signal("call('pidfd_send_signal', call('pidfd_open', victim, 0), 10, 0, 0)")),
            (
                "by directory",
                signal("call('pidfd_send_signal', os.open(f'/proc/{victim}', os.O_RDONLY), 10, 0, 0)"),
            ),
            (
                "by an owner of a pipe",
                signal(
                    "r, w = os.pipe(); fcntl.fcntl(r, 10, 10); fcntl.fcntl(r, fcntl.F_SETOWN, victim); fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b'x'); os.close(w)",
                ),
            ),
            ("the session's own", "for pid in posterns: os.kill(pid, 0)".to_owned()),
            ("their groups", "for pid in posterns: os.killpg(os.getpgid(pid), 0)".to_owned()),
        ];
        let attacks = Attacks::new(world, &given, &attacks);
        world.write("order", attacks.command());
        attacks.outside(true);
        attacks.inside(|_| session.go());
    });
}

#[test]
fn a_signal_to_ones_own_group_stays_inside() {
    for_each_user(|world| {
        let victim = victim(world, |command| command.process_group(0));
        let group = i32::try_from(victim.0.id()).unwrap();
        let signal = |how: &str| {
            format!(
                "signal.signal(10, signal.SIG_IGN); need(os.getpgid(0) in (0, {group}))\ntry: {how}\nexcept OSError: pass{HIT}"
            )
        };
        let attacks = [
            ("of the process", signal("os.kill(0, 10)")),
            ("of the group", signal("os.killpg(0, 10)")),
            // SIGIO to the group that a pipe's owner is, as any signal.
            (
                "of the owner of a pipe",
                signal(
                    "r, w = os.pipe(); fcntl.fcntl(r, 10, 10); fcntl.fcntl(r, fcntl.F_SETOWN, -os.getpgrp()); fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC); os.write(w, b'x'); os.close(w)",
                ),
            ),
        ];
        let attacks = Attacks::new(world, &json!({}), &attacks);
        let within = |mut command: Command, script: String| {
            finish(command.args(["-fc", &format!("trap '' USR1; {script}")]).process_group(group))
        };
        attacks.outside_by(true, |script| within(world.plain_command("bash"), script.to_owned()));
        attacks.inside(|script| within(world.posternsh(), script.to_owned()));
    });
}

#[test]
fn a_signal_to_everybody_stays_inside() {
    for_each_user(|world| {
        // Outside, everybody is who lives in a PID namespace of the test's own.
        let script = |attacker: &str| {
            format!(
                "trap '' USR1; {attacker}; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.05; test -e {0}/hit && break; done; test -e {0}/hit; echo $?",
                world.outside.display()
            )
        };
        let everybody = "python3 -c 'import os; os.kill(-1, 10)'";
        let both = format!("(trap - USR1; {}) & sleep 0.5; {}", sensitive(world), script(everybody));
        let user = if has_root(world) { &[][..] } else { &["--user", "--map-current-user"] };
        let mut unshare = world.plain_command("unshare");
        let output = finish(unshare.args(user).args(["--pid", "--fork", "bash", "-c", &both]));
        assert_eq!(stdout(&output), "0", "{}", text(&output.stderr));
        std::fs::remove_file(world.outside.join("hit")).unwrap();

        let _victim = victim(world, |command| command);
        let output = world.session("", &script(everybody));
        assert_eq!(stdout(&output), "1", "{}", text(&output.stderr));
    });
}

#[test]
fn a_process_that_the_caller_hands_in_is_not_signalled() {
    for_each_user(|world| {
        let victim = victim(world, |command| command);
        let attack = format!("try: call('pidfd_send_signal', 9, 10, 0, 0)\nexcept OSError: pass{HIT}");
        // A directory of /proc is a process to pidfd_send_signal(2), too.
        for open in ["os.pidfd_open(PID)", "os.open('/proc/PID', 0)"] {
            let open = open.replace("PID", &victim.0.id().to_string());
            attack_handed(world, &json!({}), &open, &[("handed in", &attack)]);
        }
    });
}
