# Lets Postern, and nothing else through it, make user namespaces where AppArmor refuses them to
# programs without a profile (Ubuntu 23.10 and later: apparmor_restrict_unprivileged_userns).
abi <abi/4.0>,
include <tunables/global>

profile postern @PREFIX@/bin/postern flags=(unconfined) {
  userns,

  include if exists <local/postern>
}
