/* The C ABI between zsh and the shim (shim/src/hook.rs). */
#ifndef POSTERN_SHIM_H
#define POSTERN_SHIM_H

#include <stddef.h>

/* The innermost functions that travel with a request; deeper ones are dropped. */
#define POSTERN_MAX_FUNCTIONS 32

/* What only the shell knows of an exec. Strings are in zsh's metafied form; any may be NULL. */
struct postern_context {
    const char *script;            /* file that is being read */
    long long line;                /* line in it */
    const char *job;               /* text of the command */
    const char *const *functions;  /* innermost first */
    size_t nfunctions;
};

/* Once, before the shell touches its environment: remembers the session's socket. */
void postern_init(void);

/* execve(2) through the gate. Returns -1 with errno set if the file cannot be executed; does not
 * return when the command runs, was denied (exit status 126) or was run elsewhere (its own). */
int postern_execve(const char *path, char *const argv[], char *const envp[],
		   const struct postern_context *context);

/* A path compiled in below the build's prefix, moved to where this executable really lies. The
 * result is valid until the next call. */
const char *postern_relocate(const char *built);

#endif
