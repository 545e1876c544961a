//! The C ABI that patched zsh calls: `include/shim.h`.

use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char, c_int, c_longlong};
use core::slice;

use crate::client::{Context, Exec, Gate, List, Text, Verdict};
use crate::sys;
use crate::wire::{self, ByteSlice, Layer};

/// State of the shell's one thread, written before it runs anything.
struct Slot<T>(UnsafeCell<T>);

// SAFETY: zsh has one thread, and these are its private state; no signal handler touches them.
unsafe impl<T> Sync for Slot<T> {}

static GATE: Slot<Option<Gate>> = Slot(UnsafeCell::new(None));
static RELOCATED: Slot<[u8; wire::MAX_PATH]> = Slot(UnsafeCell::new([0; wire::MAX_PATH]));

/// `struct postern_context`.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct PosternContext {
    script: *const c_char,
    line: c_longlong,
    job: *const c_char,
    functions: *const *const c_char,
    nfunctions: usize,
}

/// Remembers the session's socket, whatever becomes of the variable later.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn postern_init() {
    // SAFETY: the name is NUL-terminated; the value is read before anything changes the environment.
    let value = unsafe {
        let value = libc::getenv(c"POSTERN_SOCKET".as_ptr());
        if value.is_null() { None } else { Some(CStr::from_ptr(value)) }
    };
    let gate = match value {
        Some(value) => {
            let fd = sys::parse_decimal(value.to_bytes()).unwrap_or(-1);
            // A variable without its socket is a session that cannot be reached, never "no session".
            Some(Gate::on(fd).unwrap_or_else(|| Gate::closed(fd)))
        }
        // The environment may have been wiped.
        None => Gate::of_session(),
    };
    // SAFETY: one thread, nothing else borrows it.
    unsafe { *GATE.0.get() = gate };
}

/// execve(2) through the gate.
///
/// # Safety
/// `path` is a string, `argv` and `envp` are NULL-terminated arrays of strings, and `context`
/// points to a `postern_context` whose fields are as `shim.h` says.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn postern_execve(
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    context: *const PosternContext,
) -> c_int {
    // SAFETY: the caller's promise; the gate was set before the shell ran anything.
    let (path, context, gate) = unsafe { (CStr::from_ptr(path), &*context, *GATE.0.get()) };
    if let Some(gate) = gate {
        // SAFETY: the caller's promise.
        let verdict = unsafe { ask(gate, path, argv, envp, context) };
        if let Verdict::Fail(errno) = verdict {
            sys::set_errno(errno);
            return -1;
        }
    }
    // SAFETY: the caller's promise.
    let errno = unsafe { sys::execve(path, argv, envp) };
    sys::set_errno(errno);
    -1
}

/// # Safety
/// As [`postern_execve`]. The strings are called `'static` because they live until the exec.
unsafe fn ask(
    gate: Gate,
    path: &CStr,
    argv: *const *const c_char,
    envp: *const *const c_char,
    context: &PosternContext,
) -> Verdict {
    // SAFETY: the caller's promise, for each pointer below.
    unsafe {
        let (argc, argv_bytes) = measure(argv);
        let (envc, env_bytes) = measure(envp);
        let functions = if context.functions.is_null() {
            &[]
        } else {
            slice::from_raw_parts(context.functions, context.nfunctions.min(wire::MAX_FUNCTIONS))
        };
        if argc > wire::MAX_STRINGS || envc > wire::MAX_STRINGS {
            return Verdict::Fail(libc::E2BIG);
        }
        let (script, job) = (text(context.script), text(context.job));
        let functions = List(functions.iter().map(|&name| text(name)), functions.len());
        let texts = [script, job].into_iter().chain(functions.0.clone());
        let text_bytes = texts.map(|text| text.0.len().min(wire::MAX_TEXT) + 9).sum::<usize>();
        let named = ByteSlice(path.to_bytes());
        // Each string, and each count, has up to nine bytes before it.
        let strings = argv_bytes + env_bytes + 9 * (argc + envc);
        let size = wire::HEADER + named.0.len() + strings + text_bytes + 64;
        gate.ask(path, size, |has_cwd| Exec {
            path: named,
            has_cwd,
            context: Context {
                layer: Layer::Zsh,
                script,
                line: context.line.try_into().unwrap_or(0),
                job,
                functions,
            },
            argv: List(Strings(argv), argc),
            env: List(Strings(envp), envc),
            wish: None,
        })
    }
}

/// # Safety
/// `text` is NULL or a string.
unsafe fn text(text: *const c_char) -> Text<'static> {
    // SAFETY: the caller's promise.
    Text(if text.is_null() { b"" } else { unsafe { CStr::from_ptr(text) }.to_bytes() })
}

/// # Safety
/// `array` is a NULL-terminated array of strings.
unsafe fn measure(array: *const *const c_char) -> (usize, usize) {
    // SAFETY: the caller's promise is that of `Strings`.
    Strings(array).fold((0, 0), |(count, bytes), string| (count + 1, bytes + string.0.len()))
}

/// Walks a NULL-terminated array of strings; made only from pointers that are promised to be one.
#[derive(Clone, Copy)]
struct Strings(*const *const c_char);

impl Iterator for Strings {
    type Item = ByteSlice<'static>;

    fn next(&mut self) -> Option<ByteSlice<'static>> {
        // SAFETY: within the array, whose last element is NULL; the strings outlive the exec.
        unsafe {
            if self.0.is_null() || (*self.0).is_null() {
                return None;
            }
            let string = CStr::from_ptr(*self.0).to_bytes();
            self.0 = self.0.add(1);
            Some(ByteSlice(string))
        }
    }
}

/// Moves a path that was compiled in below the build's prefix to where this executable lies:
/// `<prefix>/libexec/postern/zsh`. Elsewhere (the build tree, its tests) it stays as it is.
///
/// # Safety
/// `built` is a string. The result lives until the next call.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn postern_relocate(built: *const c_char) -> *const c_char {
    const BELOW: &[u8] = b"/libexec/postern/zsh";
    let mut exe = [0; wire::MAX_PATH];
    // SAFETY: the buffer is as long as stated; `built` is the caller's promise.
    let (length, path) = unsafe {
        let length = libc::readlink(c"/proc/self/exe".as_ptr(), exe.as_mut_ptr().cast::<c_char>(), exe.len());
        (length, CStr::from_ptr(built))
    };
    let Some(prefix) = usize::try_from(length)
        .ok()
        .and_then(|length| exe.get(..length))
        .and_then(|exe| exe.strip_suffix(BELOW))
    else {
        return built;
    };
    let Some(rest) = path.to_bytes().strip_prefix(crate::BUILD_PREFIX.as_bytes()) else { return built };
    // SAFETY: one thread; the caller copies the result before it calls again.
    let relocated = unsafe { &mut *RELOCATED.0.get() };
    let Some((to, end)) =
        relocated.split_at_mut_checked(prefix.len() + rest.len()).filter(|(_, end)| !end.is_empty())
    else {
        return built;
    };
    let (head, tail) = to.split_at_mut(prefix.len());
    head.copy_from_slice(prefix);
    tail.copy_from_slice(rest);
    end[0] = 0;
    relocated.as_ptr().cast::<c_char>()
}
