//! The classes of devices that hosts are known to offer.
//!
//! Source: Linux' `include/linux/hyperv.h`; the last ones from OpenVMM.

use super::Guid;

macro_rules! classes {
    ($($(#[$attribute:meta])* $constant:ident $name:literal $guid:literal;)*) => {
        $($(#[$attribute])* pub const $constant: Guid = Guid::literal($guid);)*

        /// Returns the name of a class that we know.
        #[must_use]
        pub const fn name(class: Guid) -> Option<&'static str> {
            match class {
                $($constant => Some($name),)*
                _ => None,
            }
        }
    };
}

classes! {
    /// SCSI disks and DVD drives.
    STORAGE "storage" "ba6163d9-04a1-4d29-b605-72e2ffb1dc7f";
    /// IDE disks of Gen1 machines.
    IDE "ide" "32412632-86cb-44a2-9b5c-50d1417354f5";
    /// Fibre channel.
    FIBRE_CHANNEL "fibre channel" "2f9bcc4a-0069-4af3-b76b-6fd0be528cda";
    /// Network adapters.
    NETWORK "network" "f8615163-df3e-46c5-913f-f2d2f965ed0e";
    /// Remote direct memory access.
    RDMA "rdma" "8c2eaf3d-32a7-4b09-ab99-bd1f1c86b501";
    /// PCI pass-through.
    PCI "pci" "44c4f61d-4444-4400-9d52-802e27ede19f";
    /// The framebuffer.
    VIDEO "video" "da0a7802-e377-4aac-8e77-0558eb1073f8";
    /// The keyboard.
    KEYBOARD "keyboard" "f912ad6d-2b17-48ea-bd65-f927a61c7684";
    /// The mouse.
    MOUSE "mouse" "cfa8b69e-5b4a-4cc0-b98b-8ba1a1f3f95a";
    /// Dynamic memory: ballooning and hot add.
    DYNAMIC_MEMORY "dynamic memory" "525074dc-8985-46e2-8057-a307dc18a502";
    /// Integration service: shutdown.
    SHUTDOWN "shutdown" "0e0b6031-5213-4934-818b-38d90ced39db";
    /// Integration service: time synchronisation.
    TIME_SYNC "time sync" "9527e630-d0ae-497b-adce-e80ab0175caf";
    /// Integration service: heartbeat.
    HEARTBEAT "heartbeat" "57164f39-9115-4e78-ab55-382f3bd5422d";
    /// Integration service: data exchange (key-value pairs).
    KVP "kvp" "a9a0f4e7-5a45-4d96-b827-8a841e8c03e6";
    /// Integration service: backup (volume snapshots).
    VSS "vss" "35fa2e29-ea23-4236-96ae-3a6ebacba440";
    /// Integration service: file copy.
    FILE_COPY "file copy" "34d14be3-dee4-41c8-9ae7-6b174977c192";
    /// Remote desktop virtualisation.
    REMOTE_DESKTOP "remote desktop" "276aacf4-ac15-426c-98dd-7521ad3f01fe";
    /// Automatic virtual machine activation.
    ACTIVATION "activation" "f8e65716-3cb3-4a06-9a60-1889c5cccab5";
    /// Inherited activation.
    INHERITED_ACTIVATION "inherited activation" "3375baf4-9e15-4b30-b765-67acb10d607b";
}
