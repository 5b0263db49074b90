"""What each field of a policy means, in words: for `attested policy explain`, and held to docs/policy.md by a test.

For a switch: what is so when it is true, and when it is false. For anything else: what is so with a value (`{}`), and
without one. Every field of every policy has its words here; a test counts them.
"""

from __future__ import annotations

from attestation.measure import EventLogPolicy
from attestation.nitro import NitroPolicy
from attestation.nvidia.policy import GpuPolicy
from attestation.policy import StatementPolicy
from attestation.release_policy import ReleasePolicy
from attestation.reviewers import ReferencesPolicy
from attestation.roots import Roots
from attestation.snp.policy import SnpPolicy
from attestation.tdx import TdxPolicy
from attestation.vtpm import VtpmPolicy

Words = dict[str, tuple[str, str]]

_ANY = "any value is accepted"

RELEASE: Words = {
    "name": (
        "what was seen under the name {} is remembered, and older things are refused",
        "nothing is remembered",
    ),
    "epoch": ("this is epoch {} of that name", "this is the first epoch of that name"),
    "expires": ("this policy ends at {}", "this policy never ends"),
    "revoked": ("refused, whatever else accepts it: {}", "no release is refused by name"),
    "limited": (
        "accepted before its end alone, and on its machines alone: {}",
        "no release ends, or is bound to machines",
    ),
    "accepted": (
        "what is not named here must all be of one of these releases, in force: {}",
        "no release is accepted as a whole",
    ),
}

REFERENCES: Words = {
    "file": ("what the signed references in {} accept is accepted too", "there is no file of references"),
    "name": ("they must be about {}", "they must have no name"),
    "reviewers": ("they must be signed by {}", "nobody's signature counts"),
    "threshold": ("{} of the reviewers must have signed", "all of the reviewers must have signed"),
    "min_epoch": ("their epoch must be {} or later", "their epoch may be any"),
}

ROOTS: Words = {
    "intel": ("Intel's evidence must chain to {}", "nothing of Intel's is trusted"),
    "amd": ("AMD's evidence must chain to {}", "nothing of AMD's is trusted"),
    "nvidia_device": ("GPUs must chain to {}", "no GPU is trusted"),
    "nvidia_rim": ("GPU reference manifests must chain to {}", "no reference manifest is trusted"),
    "aws": ("Nitro documents must chain to {}", "nothing of Amazon's is trusted"),
}

STATEMENT: Words = {
    "model_digests": ("the model must be {}", "no model is listed"),
    "any_model": ("any model is accepted", "a model that is not listed is refused"),
    "config_digests": ("the gateway's configuration must be {}", "no configuration is listed"),
    "any_config": (
        "any configuration of the gateway is accepted",
        "a configuration that is not listed is refused",
    ),
    "allow_external_engine": (
        "an engine that the gateway did not start is accepted: its flags and model are its operator's word",
        "the gateway must have started the engine itself",
    ),
    "max_engine_nodes": (
        "the model may run on up to {} machines",
        "the model runs on one machine",
    ),
    "require_log": (
        "the enclave must keep a log of its receipts",
        "an enclave that keeps no log of its receipts is accepted",
    ),
    "require_serving_seal": (
        "the statement must be sealed by the key that RTMR3 names, so only on TDX",
        "a statement without a serving seal is accepted",
    ),
    "secrets_digests": (
        "the enclave's owner must have given it the secrets {}",
        "the secrets that the enclave's owner has given it are not asked for",
    ),
}

TDX: Words = {
    "measurements": ("the TD must measure {}", "no measurement is listed"),
    "any_measurement": ("any measurement is accepted", "a measurement that is not listed is refused"),
    "mr_config_id": ("MRCONFIGID must be {}", "no MRCONFIGID is accepted"),
    "any_mr_config_id": ("any MRCONFIGID is accepted", "another MRCONFIGID is refused"),
    "mr_owner": ("MROWNER must be {}", "no MROWNER is accepted"),
    "any_mr_owner": ("any MROWNER is accepted", "another MROWNER is refused"),
    "mr_owner_config": ("MROWNERCONFIG must be {}", "no MROWNERCONFIG is accepted"),
    "any_mr_owner_config": ("any MROWNERCONFIG is accepted", "another MROWNERCONFIG is refused"),
    "allow_debug": (
        "a TD in debug mode is accepted: its host can read its memory",
        "a TD in debug mode is refused",
    ),
    "allow_sept_ve": (
        "a TD that its host may interrupt with #VE is accepted",
        "a TD that its host may interrupt with #VE (SEPT_VE_DISABLE clear) is refused",
    ),
    "allow_migratable": ("a TD that can be migrated is accepted", "a TD that can be migrated is refused"),
    "allow_perfmon": (
        "performance monitoring in the TD is accepted",
        "performance monitoring in the TD is refused",
    ),
    "allow_pks": ("supervisor protection keys are accepted", "supervisor protection keys are refused"),
    "allow_attribute_bits": (
        "reserved TD attribute bits {} may be set",
        "reserved TD attribute bits are refused",
    ),
    "allow_xfam_bits": (
        "XFAM bits {} may be set beyond those of TDX",
        "XFAM bits beyond those of TDX are refused",
    ),
    "allow_service_td": ("a bound service TD is accepted", "a bound service TD is refused"),
    "allow_padding": ("zero bytes after the quote are accepted", "zero bytes after the quote are refused"),
    "accept_tcb_status": ("the TCB must be {}", "no TCB status is accepted"),
    "grace_days": (
        "a TCB level that went out of date less than {} days ago is accepted",
        "no grace for an old TCB",
    ),
    "accept_advisories": ("the advisories {} may apply", "no advisory may apply"),
    "accept_any_advisory": ("any advisory may apply", "an advisory that is not listed is refused"),
    "min_tcb_evaluation_data_number": (
        "Intel's evaluation of TCBs must be number {} or later",
        "any evaluation of TCBs that is in date is accepted",
    ),
    "max_collateral_age_days": (
        "collateral must have been issued in the last {} days",
        "collateral of any age is accepted while it is in date",
    ),
    "min_tee_tcb_svn": (
        "every byte of TEE_TCB_SVN must be at least that of {}",
        "any TEE_TCB_SVN that Intel knows",
    ),
    "mr_seam": ("the TDX module must measure {}", "any TDX module that Intel vouches for is accepted"),
    "mr_signer_seam": (
        "the TDX module's signer must be {} (zero is Intel)",
        "no signer of TDX modules is accepted",
    ),
    "fmspc": ("the platform's FMSPC must be {}", "any kind of platform is accepted"),
    "ppid": ("the platform must be {} by its PPID", "any platform is accepted, by its PPID"),
    "platform_instance_id": ("the platform instance must be {}", "any platform instance is accepted"),
}

SNP: Words = {
    "measurements": ("the guest must measure {}", "no measurement is listed"),
    "any_measurement": ("any measurement is accepted", "a measurement that is not listed is refused"),
    "host_data": ("HOST_DATA must be {}", "HOST_DATA must be zero"),
    "any_host_data": ("any HOST_DATA is accepted", "another HOST_DATA is refused"),
    "family_ids": ("the family id must be {}", "any family id is accepted"),
    "image_ids": ("the image id must be {}", "any image id is accepted"),
    "id_keys": ("the ID key's digest must be {}", "any ID key, or none, is accepted"),
    "author_keys": ("the author key's digest must be {}", "any author key, or none, is accepted"),
    "min_guest_svn": ("the guest's SVN must be {} or more", "any guest SVN is accepted"),
    "allow_debug": (
        "a guest that may be debugged is accepted: its host can read its memory",
        "debugging is refused",
    ),
    "allow_migration_agent": ("a migration agent is accepted", "a migration agent is refused"),
    "allow_cxl": ("CXL memory is accepted", "CXL memory is refused"),
    "allow_smt": ("SMT is accepted", "SMT is refused"),
    "max_vmpl": (
        "reports asked for at VMPL {} or below are accepted",
        "only reports asked for at VMPL 0 are accepted",
    ),
    "require_single_socket": ("the guest must demand a single socket", "several sockets are accepted"),
    "require_memory_aes256": (
        "the guest must demand AES-256-XTS memory",
        "AES-128 memory encryption is accepted",
    ),
    "require_rapl_disabled": ("power readings (RAPL) must be off", "power readings (RAPL) are accepted"),
    "require_ciphertext_hiding": ("ciphertext hiding must be on", "visible ciphertext is accepted"),
    "require_page_swap_disabled": ("page swapping must be off", "page swapping is accepted"),
    "min_abi_major": ("the guest must demand ABI {} or later (major)", "any ABI version (major) is accepted"),
    "min_abi_minor": ("the guest must demand ABI {} or later (minor)", "any ABI version (minor) is accepted"),
    "signers": ("the report must be signed by a {}", "no kind of signer is accepted"),
    "allow_missing_crl": (
        "evidence without AMD's revocation list is accepted",
        "AMD's revocation list is demanded",
    ),
    "allow_milan": (
        "Milan is accepted, whose TCB can be forged",
        "Milan, whose TCB can be forged, is refused",
    ),
    "chip_ids": ("the chip must be {}", "any chip is accepted"),
    "require_tsme": ("TSME must be on", "TSME may be off"),
    "require_ecc": ("ECC memory is demanded", "memory without ECC is accepted"),
    "require_iommu_write_safe": (
        "IOMMU write safety is demanded",
        "a host without IOMMU write safety is accepted",
    ),
    "allow_unchecked_aliases": (
        "memory that was not checked for aliases is accepted",
        "memory that was not checked for aliases (BadRAM) is refused",
    ),
    "allow_unknown_platform_bits": (
        "unknown platform bits are accepted",
        "unknown platform bits are refused",
    ),
    "tcb_floors": ("each TCB must reach {}", "no product has a floor, so none is accepted"),
    "allow_provisional_firmware": (
        "firmware that can still be rolled back is accepted",
        "firmware that can still be rolled back is refused",
    ),
    "min_firmware": ("the firmware must be {} or later", "any firmware version is accepted"),
    "required_mitigations": (
        "the mitigation vectors must contain {}",
        "no mitigation is demanded by its bit",
    ),
}

GPU: Words = {
    "required": ("at least one GPU must be attested", "a machine without GPUs is accepted"),
    "count": ("exactly {} GPUs must be attested", "any number of GPUs is accepted"),
    "archs": ("the architecture must be {}", "no architecture is accepted"),
    "min_driver": ("the driver must be {} or newer", "any driver that NVIDIA vouches for is accepted"),
    "min_vbios": ("the VBIOS must be {} or newer", "any VBIOS that NVIDIA vouches for is accepted"),
    "allow_missing_rim": (
        "golden values need not be compared where NVIDIA's manifest is missing",
        "NVIDIA's manifests are demanded",
    ),
    "allow_unknown_revocation": (
        "certificates that no OCSP answer calls good are accepted",
        "certificates that no OCSP answer calls good are refused",
    ),
    "allow_missing_fwid": (
        "reports without a firmware digest are accepted",
        "reports without a firmware digest are refused",
    ),
    "allow_unreported_state": (
        "GPUs whose mode the machine does not report are accepted",
        "GPUs whose mode the machine does not report are refused",
    ),
    "allow_devtools": (
        "developer tools are accepted: they read the GPU's memory",
        "developer tools are refused",
    ),
    "allow_protected_pcie": (
        "protected PCIe is accepted, where traffic is not encrypted",
        "protected PCIe is refused",
    ),
    "allow_unattested_switches": ("unattested NVSwitches are accepted", "unattested NVSwitches are refused"),
    "allow_token": ("a service's token may stand in for the evidence", "a service's token is no evidence"),
    "token_jwks": (
        "tokens count when signed by a key of {}",
        "no service's keys are pinned, so no token counts",
    ),
}

NITRO: Words = {
    "measurements": ("the enclave must measure {}", "no measurement is listed"),
    "any_measurement": ("any measurement is accepted", "a measurement that is not listed is refused"),
    "allow_debug": ("an enclave in debug mode is accepted", "an enclave in debug mode is refused"),
    "max_age_seconds": (
        "the document must be at most {} seconds old",
        "the document must be of this very second",
    ),
    "any_age": ("a document of any age is accepted", "an older document is refused"),
    "nonce": ("the nonce must be {}", "there must be no nonce"),
    "any_nonce": (_ANY + " as nonce", "another nonce is refused"),
    "user_data": ("the user data must be {}", "there must be no user data"),
    "any_user_data": (_ANY + " as user data", "other user data are refused"),
    "public_key": ("the public key must be {}", "there must be no public key"),
    "any_public_key": (_ANY + " as public key", "another public key is refused"),
}

AZURE: Words = {
    "snp": ("on SEV-SNP the hardware is judged by [azure.snp]", "SEV-SNP is refused"),
    "tdx": ("on TDX the hardware is judged by [azure.tdx]", "TDX is refused"),
    "measurements": ("the PCRs must together be {}", "no set of PCRs is listed"),
    "pcrs": ("PCRs must have these values: {}", "no PCR is listed"),
    "event_log": ("the event log is judged by [azure.event_log]", "the event log is not judged"),
    "any_pcrs": ("any PCRs are accepted", "PCRs or an event log must be named"),
    "allow_no_secure_boot": ("a VM without Secure Boot is accepted", "a VM without Secure Boot is refused"),
    "allow_console": (
        "the cloud's serial console may reach into the VM",
        "a VM with the cloud's serial console is refused",
    ),
    "user_data": ("the user data must be {}", "there must be no user data"),
    "any_user_data": (_ANY + " as user data", "other user data are refused"),
}

EVENT_LOG: Words = {
    "kernels": ("each EFI application must be {}", "no EFI application is listed"),
    "any_kernel": ("any EFI application is accepted", "an EFI application that is not listed is refused"),
    "initrds": ("the initrd must be {}", "no initrd is listed"),
    "any_initrd": ("any initrd is accepted", "an initrd that is not listed is refused"),
    "command_lines": ("the kernel's command line must be {}", "no command line is listed"),
    "any_command_line": ("any command line is accepted", "a command line that is not listed is refused"),
    "other_events": ("{} may be measured too", "no other event is listed"),
    "any_firmware_event": (
        "any event of the firmware is accepted",
        "an event of the firmware must be listed",
    ),
    "any_other_event": ("any event of another kind is accepted", "an event of another kind must be listed"),
    "any_runtime_event": ("any event at run time is accepted", "an event at run time must be listed"),
    "compose_hashes": ("dstack's compose hash must be {}", "no compose hash is listed"),
    "any_compose_hash": ("any compose hash is accepted", "another compose hash is refused"),
    "app_ids": ("dstack's app id must be {}", "no app id is listed"),
    "any_app_id": ("any app id is accepted", "another app id is refused"),
    "key_providers": ("dstack's key provider must be {}", "no key provider is listed"),
    "any_key_provider": ("any key provider is accepted", "another key provider is refused"),
}

#: In the order of a policy file: table, its class, whose evidence it judges, its words.
TABLES: tuple[tuple[str, type, str, Words], ...] = (
    ("release", ReleasePolicy, "Which release this is about", RELEASE),
    ("references", ReferencesPolicy, "Reference values that reviewers signed", REFERENCES),
    ("roots", Roots, "Roots of trust", ROOTS),
    ("statement", StatementPolicy, "What the enclave says of itself", STATEMENT),
    ("tdx", TdxPolicy, "Intel TDX", TDX),
    ("snp", SnpPolicy, "AMD SEV-SNP", SNP),
    ("gpu", GpuPolicy, "NVIDIA GPUs", GPU),
    ("event_log", EventLogPolicy, "What the boot measured", EVENT_LOG),
    ("nitro", NitroPolicy, "AWS Nitro, for `attested evidence nitro` alone", NITRO),
    ("azure", VtpmPolicy, "Azure's confidential VMs, by their vTPM", AZURE),
    ("azure.snp", SnpPolicy, "The hardware under it, on SEV-SNP", SNP),
    ("azure.tdx", TdxPolicy, "The hardware under it, on TDX", TDX),
    ("azure.event_log", EventLogPolicy, "What its boot measured", EVENT_LOG),
)

#: What it means that a table is missing, where that is not a refusal.
ABSENT = {
    "references": "none: only what this file names is accepted",
    "event_log": "not asked for, because the policy has no such table; the registers are judged",
}
