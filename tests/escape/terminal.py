# Runs a command on a terminal of its own, and says what came of it and whether that terminal, and
# another one of the operator, has got anything that nobody typed.
import json, os, pty, select, signal, sys, termios

other_master, other = pty.openpty()
for fd in other,:
    settings = termios.tcgetattr(fd)
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(fd, termios.TCSANOW, settings)
pid, master = pty.fork()
if pid == 0:
    signal.alarm(40)
    os.environ['OTHER'] = os.ttyname(other)
    os.close(other_master)
    os.close(other)
    os.execvp(sys.argv[1], sys.argv[1:])


def drained(fd, patience):
    got = b''
    while select.select([fd], [], [], patience)[0]:
        try:
            part = os.read(fd, 4096)
        except OSError:
            break
        if not part:
            break
        got += part
    return got


said = drained(master, 20)
os.waitpid(pid, 0)
print(said.decode(errors='replace').replace('\r', ''))
print('the other terminal got', drained(other_master, 0.1).decode())
