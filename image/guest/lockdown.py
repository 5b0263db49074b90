"""What the kernel does not do any more once everything is in place, for root neither."""

from __future__ import annotations

from pathlib import Path

from image.guest import modules

SYSCTLS = {
    "kernel.kexec_load_disabled": "1",
    "kernel.dmesg_restrict": "1",
    "kernel.kptr_restrict": "2",
    "kernel.perf_event_paranoid": "3",
    "kernel.unprivileged_bpf_disabled": "2",
    "kernel.io_uring_disabled": "2",
    "kernel.yama.ptrace_scope": "3",
    "kernel.sysrq": "0",
    "kernel.panic_on_oops": "1",
    "kernel.core_pattern": "",  # with the limit below no process leaves its memory behind
    "fs.suid_dumpable": "0",
    "fs.protected_hardlinks": "1",
    "fs.protected_symlinks": "1",
    "dev.tty.ldisc_autoload": "0",
    "net.core.bpf_jit_harden": "2",
    "net.ipv4.conf.all.accept_redirects": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.all.rp_filter": "1",
}
BEFORE_NETWORK = {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"}
LOCKDOWN = Path("/sys/kernel/security/lockdown")


def set_all(values: dict[str, str], proc: Path = Path("/proc/sys")) -> None:
    for name, value in values.items():
        (proc / name.replace(".", "/")).write_text(f"{value}\n")


def lock_down() -> None:
    """No module, no other kernel, nobody's memory."""
    set_all(SYSCTLS)
    modules.close()
    LOCKDOWN.write_text("confidentiality")
