"""Drives a program on a pseudo-terminal: a list of steps, each text to send and text to wait for."""
import errno, json, os, pty, select, signal, struct, sys, termios, fcntl, time

steps = json.load(sys.stdin)
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[2:])
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', 30, 90, 0, 0))
seen = ''

def read(timeout):
    global seen
    ready, _, _ = select.select([master], [], [], timeout)
    if not ready:
        return False
    try:
        data = os.read(master, 65536)
    except OSError as error:
        if error.errno == errno.EIO:
            return None
        raise
    seen += data.decode(errors='replace')
    return bool(data) or None

mark = 0
for step in steps:
    if 'size' in step:
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack('HHHH', *step['size'], 0, 0))
    # A person does not type faster than a shell forks or prompts, in any shell.
    time.sleep(0.4 if step.get('send', '') in ('\x03', '\x1a', '\x04') else 0.2)
    if 'send' in step:
        os.write(master, step['send'].encode())
    deadline = time.monotonic() + 15
    while step.get('expect', '') not in seen[mark:]:
        if read(max(0, deadline - time.monotonic())) is None or time.monotonic() > deadline:
            print('expected', repr(step), 'in', repr(seen[mark:]), 'after', repr(seen[:mark]))
            os.kill(pid, signal.SIGKILL)
            sys.exit(1)
    at = seen.index(step.get('expect', ''), mark) + len(step.get('expect', ''))
    if 'absent' in step:
        time.sleep(0.2)
        while read(0):
            pass
        if step['absent'] in seen[mark:]:
            print('unexpected', repr(step), 'in', repr(seen[mark:]))
            sys.exit(1)
    mark = at
deadline = time.monotonic() + 15
while time.monotonic() < deadline and read(0.2) is not None:
    pass
_, status = os.waitpid(pid, 0)
print(seen)
sys.exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
