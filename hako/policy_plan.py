"""What a policy means: the sandbox to build, as whom PROG runs in it, the limits and restrictions that hold."""

import os

from hako import identity, kernel, policy, sandbox
from hako.failure import Failure

OF_EACH = ("core", "cpu", "fsize", "nofile", "as")  # limits of each process; rlimits.LIMITS says why this order
SHARED = ("memory", "pids", "output")


def box(wanted):
    """The Sandbox of the policy WANTED."""
    if wanted.network == "pasta":
        from hako import outside
        from hako.pasta import PACKAGE

        outside.find("pasta", PACKAGE)
    return sandbox.Sandbox(
        mounts=wanted.tree,
        writable=wanted.writable,
        size=wanted.size,
        network=wanted.network,
        pasta=list(wanted.network_options),
        share=tuple(wanted.share),
        hostname=wanted.hostname,
    )


def who(wanted, cap_add):
    """The identity.Identity of the policy WANTED, with the capabilities CAP_ADD, names.

    Its uid and gid say what PROG is inside. Other groups are taken away with
    them from who may do that, root; from others only if user or group asks for it.
    """
    group = wanted.group if wanted.gid is None else str(wanted.gid)
    found = identity.resolve(wanted.user, group, cap_add)
    if wanted.uid is not None:
        found.uid = wanted.uid
    may = kernel.capable(identity.CAP_SETGID)
    given = found.uid is not None or found.gid is not None
    found.clear_groups = given and (may or wanted.user is not None or wanted.group is not None)
    if may and found.gid is None and found.uid not in (None, os.geteuid()):
        raise Failure("uid: needs gid or group too: PROG would keep the caller's group")
    return found


def shared_limits(wanted):
    """The limits that hold for all that PROG starts, a limits.Limits; None if the policy WANTED has none."""
    given = {name: wanted.limits[name] for name in SHARED if name in wanted.limits}
    given.update({name: wanted.cgroup[name] for name in ("swap", "cpu", "cpu_weight") if name in wanted.cgroup})
    if "walltime" in wanted.limits:
        given["time"] = wanted.limits["walltime"]
    files = [(name.partition(".")[0], name, text) for name, text in wanted.cgroup.items() if "." in name]
    if not given and not files:
        return None
    from hako.limits import Limits

    called = {name: f"{'limits' if name in wanted.limits else 'cgroup'}.{name}" for name in given}
    return Limits(**given, files=files, called={**called, **{name: f"cgroup.{name}" for _, name, _ in files}})


def own_limits(wanted):
    """Those of the policy WANTED that hold for each process: {name: (soft, hard)}."""
    return {name: (wanted.limits[name],) * 2 for name in OF_EACH if name in wanted.limits}


def restriction(wanted):
    """The arguments of landlock.Rules that the policy WANTED means; None if it has none."""
    paths, ports, scopes = wanted.landlock_paths, wanted.landlock_ports, tuple(wanted.landlock_scopes)
    if paths is None and ports is None and not scopes:
        return None
    allowed = None if paths is None else [(access, path) for path, access in paths.items()]
    return allowed, None if ports is None else list(ports), scopes


def plan(wanted, cap_add=()):
    """The plan.Plan of the policy WANTED, with the capabilities CAP_ADD, names, in a user namespace in any case."""
    from hako.plan import Plan

    made = Plan(box(wanted), who(wanted, cap_add))
    made.box.userns = "always"
    made.limits = shared_limits(wanted) or made.limits
    made.limited(own_limits(wanted))
    if (restricted := restriction(wanted)) is not None:
        made.restricted(*restricted)
    code = policy.filter_program(wanted, made.identity.held())
    if code is not None:
        made.filtered(code)
    return made
