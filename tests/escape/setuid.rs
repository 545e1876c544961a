//! Programs that are somebody else, by their mode or by capabilities of their file.

use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use postern_tests::{User, for_each_user, is_root};
use serde_json::json;

use crate::attack::{Attacks, session};

/// What the process of a program comes to that waits for its input, whatever that is.
const BECOMES: &str = "
p = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
time.sleep(0.2)
status = dict(line.split(':\\t', 1) for line in open(f'/proc/{p.pid}/status') if ':\\t' in line)
p.kill()
";

#[test]
fn a_set_user_id_program_stays_its_caller() {
    for_each_user(|world| {
        let (program, secret) = (world.outside.join("other"), world.outside.join("secret"));
        let becomes = format!("{BECOMES}need(status['Uid'].split()[1] != str(os.getuid()))");
        let mut list = vec![("another user", becomes.as_str())];
        if world.user != User::Ourselves {
            list.push((
                "a file of root's",
                "need(subprocess.run([program, secret], capture_output=True).stdout == b'secret')",
            ));
        }
        // An ordinary user that runs the tests has only the machine's own such programs.
        let used = if is_root() { program.clone() } else { "/usr/bin/su".into() };
        let attacks = Attacks::new(world, &json!({ "program": used, "secret": secret }), &list);
        if is_root() {
            std::fs::copy("/bin/cat", &program).unwrap();
            std::fs::write(&secret, "secret").unwrap();
            chown(&program, Some(if world.user == User::Ourselves { 65534 } else { 0 }), None).unwrap();
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o4755)).unwrap();
            std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
        }
        attacks.outside(true);
        attacks.inside(|command| session(world, &[], command));
    });
}

#[test]
fn a_program_with_capabilities_of_its_own_gets_none() {
    for_each_user(|world| {
        let program = world.outside.join("capable");
        let used = if is_root() { program.clone() } else { "/usr/bin/su".into() };
        let some = format!("{BECOMES}need(int(status['CapEff'], 16) & 2)");
        let attacks = Attacks::new(world, &json!({ "program": used }), &[("capabilities", &some)]);
        if is_root() {
            std::fs::copy("/bin/cat", &program).unwrap();
            // Revision 2, effective: CAP_DAC_OVERRIDE.
            let set = "import os, struct, sys; os.setxattr(sys.argv[1], 'security.capability', struct.pack('<5I', 0x2000001, 2, 0, 0, 0))";
            assert!(Command::new("python3").args(["-c", set]).arg(&program).status().unwrap().success());
        }
        attacks.outside(true);
        attacks.inside(|command| session(world, &[], command));
    });
}
