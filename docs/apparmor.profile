# Lets Postern make user namespaces where AppArmor 4 refuses them to programs without a profile (Ubuntu
# 23.10 and later: apparmor_restrict_unprivileged_userns). What Postern starts without a sandbox may make
# them, too.
abi <abi/4.0>,
include <tunables/global>

profile postern @PREFIX@/{bin/postern,libexec/postern/postern-spawner} flags=(unconfined) {
  userns,

  include if exists <local/postern>
}
