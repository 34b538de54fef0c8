//! Messages about one channel: opening, closing, moving its interrupts, giving up its id.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::offer::USER_DEFINED_LEN;
use super::{ChannelId, GpadlId, OpenId, VpIndex};

/// `OPEN_CHANNEL`: the guest opens a channel.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OpenChannel {
    channel: U32,
    open_id: U32,
    ring_gpadl: U32,
    target_vp: U32,
    downstream_offset_pages: U32,
    user_data: [u8; USER_DEFINED_LEN],
}
const _: () = assert!(size_of::<OpenChannel>() == 140);

impl OpenChannel {
    /// Makes a request to open `channel`. Its rings are in `ring_gpadl`: the one from guest to host first, the other one
    /// `downstream_offset_pages` pages behind it.
    #[must_use]
    pub fn new(
        channel: ChannelId,
        open_id: OpenId,
        ring_gpadl: GpadlId,
        downstream_offset_pages: u32,
        target_vp: VpIndex,
        user_data: [u8; USER_DEFINED_LEN],
    ) -> Self {
        Self {
            channel: channel.0.into(),
            open_id: open_id.0.into(),
            ring_gpadl: ring_gpadl.0.into(),
            target_vp: target_vp.0.into(),
            downstream_offset_pages: downstream_offset_pages.into(),
            user_data,
        }
    }

    /// Returns the channel.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        ChannelId(self.channel.get())
    }

    /// Returns the name of this opening, which the answer repeats.
    #[must_use]
    pub const fn open_id(&self) -> OpenId {
        OpenId(self.open_id.get())
    }

    /// Returns the memory with both rings.
    #[must_use]
    pub const fn ring_gpadl(&self) -> GpadlId {
        GpadlId(self.ring_gpadl.get())
    }

    /// Returns the processor that the channel's interrupts go to.
    #[must_use]
    pub const fn target_vp(&self) -> VpIndex {
        VpIndex(self.target_vp.get())
    }

    /// Returns the page at which the ring from host to guest begins.
    #[must_use]
    pub const fn downstream_offset_pages(&self) -> u32 {
        self.downstream_offset_pages.get()
    }

    /// Returns the bytes that the opening side gives.
    #[must_use]
    pub const fn user_data(&self) -> &[u8; USER_DEFINED_LEN] {
        &self.user_data
    }
}

/// `OPEN_CHANNEL_RESULT`: the answer to an opening.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OpenChannelResult {
    channel: U32,
    open_id: U32,
    status: U32,
}
const _: () = assert!(size_of::<OpenChannelResult>() == 12);

impl OpenChannelResult {
    /// Makes an answer: status 0 is success.
    #[must_use]
    pub fn new(channel: ChannelId, open_id: OpenId, status: u32) -> Self {
        Self {
            channel: channel.0.into(),
            open_id: open_id.0.into(),
            status: status.into(),
        }
    }

    /// Returns the channel: an allegation, unchecked.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        ChannelId(self.channel.get())
    }

    /// Returns the opening that is answered: an allegation, unchecked.
    #[must_use]
    pub const fn open_id(&self) -> OpenId {
        OpenId(self.open_id.get())
    }

    /// Returns the status: 0 is success.
    #[must_use]
    pub const fn status(&self) -> u32 {
        self.status.get()
    }
}

macro_rules! about_one_channel {
    ($($(#[$attribute:meta])* $name:ident;)*) => {$(
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name {
            channel: U32,
        }

        impl $name {
            /// Makes the message for `channel`.
            #[must_use]
            pub fn new(channel: ChannelId) -> Self {
                Self { channel: channel.0.into() }
            }

            /// Returns the channel.
            #[must_use]
            pub const fn channel(&self) -> ChannelId {
                ChannelId(self.channel.get())
            }
        }
    )*};
}

about_one_channel! {
    /// `CLOSE_CHANNEL`: the guest closes a channel.
    CloseChannel;
    /// `REL_ID_RELEASED`: the guest no longer uses a withdrawn channel's id.
    RelIdReleased;
}

/// `MODIFY_CHANNEL`: the guest wants a channel's interrupts on another processor.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ModifyChannel {
    channel: U32,
    target_vp: U32,
}

impl ModifyChannel {
    /// Makes a request to send the interrupts of `channel` to `target_vp`.
    #[must_use]
    pub fn new(channel: ChannelId, target_vp: VpIndex) -> Self {
        Self {
            channel: channel.0.into(),
            target_vp: target_vp.0.into(),
        }
    }

    /// Returns the channel.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        ChannelId(self.channel.get())
    }

    /// Returns the processor.
    #[must_use]
    pub const fn target_vp(&self) -> VpIndex {
        VpIndex(self.target_vp.get())
    }
}

/// `MODIFY_CHANNEL_RESPONSE`: the answer, from version 5.3 on.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ModifyChannelResponse {
    channel: U32,
    status: U32,
}

impl ModifyChannelResponse {
    /// Makes an answer: status 0 is success.
    #[must_use]
    pub fn new(channel: ChannelId, status: u32) -> Self {
        Self {
            channel: channel.0.into(),
            status: status.into(),
        }
    }

    /// Returns the channel: an allegation, unchecked.
    #[must_use]
    pub const fn channel(&self) -> ChannelId {
        ChannelId(self.channel.get())
    }

    /// Returns the status: 0 is success.
    #[must_use]
    pub const fn status(&self) -> u32 {
        self.status.get()
    }
}
