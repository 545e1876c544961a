//! Code that a dynamic linker or an interpreter is told to load by the environment.

use postern_tests::{World, for_each_user, stdout, text};

use crate::attack::compiled;

/// Leaves a mark outside, where it can.
const EVIL: &str = "
#include <fcntl.h>
#include <unistd.h>
#include <link.h>
static void mark(void) { close(open(MARK, O_CREAT | O_WRONLY, 0600)); }
__attribute__((constructor)) static void loaded(void) { mark(); }
unsigned int la_version(unsigned int version) { mark(); return version; }
int helped(void) { mark(); return 0; }";

/// Where the program looks for its library, and what else is set for which program.
const VARIABLES: [(&str, &str); 7] = [
    ("LD_PRELOAD=EVIL", "PROGRAM"),
    ("LD_AUDIT=EVIL", "PROGRAM"),
    ("LD_LIBRARY_PATH=OWN", "PROGRAM"),
    ("PYTHONPATH=OWN", "python3 -c pass"),
    ("PYTHONHOME=/usr PYTHONPATH=OWN", "python3 -c pass"),
    ("BASH_ENV=OWN/script", "bash -c :"),
    ("PERL5OPT=-Mevil PERL5LIB=OWN", "perl -e 1"),
];

fn furnish(world: &World) -> (String, impl Fn(&str) -> String) {
    let outside = world.outside.display();
    let mark = format!("-DMARK=\"{outside}/mark\"");
    let evil = compiled(world, "evil.so", EVIL, &["-shared", "-fPIC", &mark]);
    // The library that the program has of its own is a good one.
    compiled(world, "libhelp.so", "int helped(void) { return 0; }", &["-shared", "-fPIC"]);
    let program = "int helped(void); int main(void) { return helped(); }";
    let library = format!("-L{outside}");
    let program = compiled(
        world,
        "program",
        program,
        &[&library, "-lhelp", &format!("-Wl,--enable-new-dtags,-rpath,{outside}")],
    );
    std::fs::create_dir(world.workspace.join("evil")).unwrap();
    std::fs::copy(&evil, world.workspace.join("evil/libhelp.so")).unwrap();
    let shell = format!(": > {outside}/mark");
    world.write("ws/evil/sitecustomize.py", format!("open('{outside}/mark', 'w')"));
    world.write("ws/evil/script", &shell);
    world.write("ws/evil/evil.pm", format!("open(my $f, '>', '{outside}/mark'); 1;"));
    let own = world.workspace.join("evil").display().to_string();
    let (evil, program) = (evil.display().to_string(), program.display().to_string());
    let rules = ["program", "python3", "bash", "perl"]
        .map(|name| format!("prefix_rule(['{name}'], execution = 'unsandboxed')\n"));
    (rules.concat(), move |text: &str| {
        text.replace("EVIL", &evil).replace("OWN", &own).replace("PROGRAM", &program)
    })
}

#[test]
fn no_code_of_the_askers_is_loaded_by_an_escalated_command() {
    for_each_user(|world| {
        let (rules, filled) = furnish(world);
        let mark = world.outside.join("mark");
        for (variables, command) in VARIABLES {
            let script = filled(&format!("export {variables}; {command}; echo tried"));
            let outside = world.plain("bash", &["-c", &script]);
            assert!(mark.exists(), "{variables}: {}", text(&outside.stderr));
            std::fs::remove_file(&mark).unwrap();
            let inside = world.session(&rules, &script);
            assert_eq!(stdout(&inside), "tried", "{variables}: {}", text(&inside.stderr));
            assert!(!mark.exists(), "{variables}");
        }
        let escalated = world.records().iter().filter(|line| line["decision"] == "escalate").count();
        assert_eq!(escalated, VARIABLES.len(), "each has run outside");
    });
}

#[test]
fn nor_by_postern_itself() {
    for_each_user(|world| {
        let (_rules, filled) = furnish(world);
        let mark = world.outside.join("mark");
        let postern = postern_tests::prefix().join("bin/postern");
        let script =
            filled(&format!("export LD_PRELOAD=EVIL; {} log; /bin/true; echo tried", postern.display()));
        let outside = world.plain("bash", &["-c", &script]);
        assert!(mark.exists(), "{}", text(&outside.stderr));
        std::fs::remove_file(&mark).unwrap();
        let inside = world.session("prefix_rule(['true'], execution = 'turn_default')", &script);
        assert!(stdout(&inside).ends_with("tried"), "{}", text(&inside.stderr));
        assert!(!mark.exists());
    });
}
