//! A message as a value, and how it is parsed and emitted: [`Message`].

use zerocopy::{FromBytes, IntoBytes};

use super::{Capabilities, CapabilitiesAnswer, Information, ProtocolVersion, Ranges, Status, WireRange, wire};

/// A message. `more` is true for all parts of a transaction but the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message<'a> {
    /// The guest proposes a version.
    VersionRequest {
        /// The version.
        version: ProtocolVersion,
        /// True if the guest will not try another one.
        is_last_attempt: bool,
    },
    /// The host accepts it or does not.
    VersionResponse {
        /// True if it does.
        is_accepted: bool,
    },
    /// The guest says what it can do.
    CapabilitiesReport {
        /// What it can do.
        capabilities: Capabilities,
        /// The fewest pages that it wants to live with. Hosts do not look at it.
        min_page_count: u64,
        /// The highest page number that it can use. Hosts do not look at it.
        max_page_number: u64,
    },
    /// The host answers that.
    CapabilitiesResponse(CapabilitiesAnswer),
    /// The guest reports its memory. No answer.
    StatusReport(Status),
    /// The host wants pages.
    BalloonRequest {
        /// How many.
        page_count: u32,
    },
    /// The guest names pages that the host now has. Without ranges: there are no more to be had.
    BalloonResponse {
        /// The pages.
        ranges: Ranges<'a>,
        /// True if more messages follow for the same request.
        more: bool,
    },
    /// The host gives pages back.
    UnballoonRequest {
        /// The pages.
        ranges: Ranges<'a>,
        /// True if more messages follow; only the last is answered.
        more: bool,
    },
    /// The guest has them.
    UnballoonResponse,
    /// The host has added memory.
    HotAddRequest {
        /// The pages that are there now.
        pages: WireRange,
        /// The range in which they lie and in which others may follow, if the host says so.
        region: Option<WireRange>,
    },
    /// The guest uses it.
    HotAddResponse {
        /// How many of the pages, from the first one on. Fewer than were offered: there is no use in offering more.
        page_count: u32,
        /// True if pages were added, and also if it was none and none ever can be; false if trying again may help.
        is_final: bool,
    },
    /// The host tells something.
    Information(Information),
}

/// Bytes from the host are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// There is not even a header.
    #[error("{len} bytes are no message")]
    NoHeader {
        /// How many bytes there are.
        len: usize,
    },
    /// The size in the header is smaller than the header or larger than what came.
    #[error("a message of type {message_type} claims {claimed_bytes} bytes, {len} came")]
    BadSize {
        /// The type in the header.
        message_type: u16,
        /// The size in the header.
        claimed_bytes: u16,
        /// How many bytes there are.
        len: usize,
    },
    /// The message is shorter than its type needs.
    #[error("a message of type {message_type} has {len} bytes, it needs {needed_bytes}")]
    TooShort {
        /// The type in the header.
        message_type: u16,
        /// The size in the header.
        len: usize,
        /// The least size of this type.
        needed_bytes: usize,
    },
    /// The message claims more ranges than it has room for.
    #[error("a message claims {claimed} ranges, there are bytes for {present}")]
    TooManyRanges {
        /// The claimed number.
        claimed: u32,
        /// How many fit in the bytes that came, or in any message.
        present: usize,
    },
    /// A type that we do not know. Not an error of the host: newer hosts may have more to say.
    #[error("messages of type {message_type} are not known")]
    UnknownType {
        /// The type in the header.
        message_type: u16,
    },
}

/// A message does not fit in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message needs {needed_bytes} bytes")]
pub struct BufferTooSmall {
    /// How many bytes it needs.
    pub needed_bytes: usize,
}

impl<'a> Message<'a> {
    /// Parses the payload of a packet into its transaction number and the message.
    ///
    /// What is guaranteed of the result: ranges are as many as really came. What they name is whatever the sender wrote.
    ///
    /// # Errors
    ///
    /// [`ParseError`]; never panics, whatever the bytes.
    pub fn parse(bytes: &'a [u8]) -> Result<(u32, Self), ParseError> {
        let len = bytes.len();
        let Ok((header, _)) = wire::Header::ref_from_prefix(bytes) else {
            return Err(ParseError::NoHeader { len });
        };
        let message_type = header.message_type.get();
        let claimed_bytes = header.size_bytes.get();
        let Some(body) = bytes.get(size_of::<wire::Header>()..usize::from(claimed_bytes)) else {
            return Err(ParseError::BadSize {
                message_type,
                claimed_bytes,
                len,
            });
        };
        let message = Self::parse_body(message_type, body)?;
        Ok((header.transaction.get(), message))
    }

    fn parse_body(message_type: u16, body: &'a [u8]) -> Result<Self, ParseError> {
        Ok(match message_type {
            wire::VERSION_REQUEST => {
                let (body, _) = wire::split::<wire::VersionRequest>(message_type, body)?;
                Self::VersionRequest {
                    version: ProtocolVersion(body.version.get()),
                    is_last_attempt: body.flags.get() & 1 != 0,
                }
            }
            wire::VERSION_RESPONSE => {
                let (body, _) = wire::split::<wire::Flags>(message_type, body)?;
                Self::VersionResponse {
                    is_accepted: body.flags.get() & 1 != 0,
                }
            }
            wire::CAPABILITIES_REPORT => {
                let (body, _) = wire::split::<wire::CapabilitiesReport>(message_type, body)?;
                Self::CapabilitiesReport {
                    capabilities: Capabilities(body.capabilities.get()),
                    min_page_count: body.min_page_count.get(),
                    max_page_number: body.max_page_number.get(),
                }
            }
            wire::CAPABILITIES_RESPONSE => {
                let (body, _) = wire::split::<wire::Flags>(message_type, body)?;
                Self::CapabilitiesResponse(CapabilitiesAnswer::from_bits_retain(body.flags.get()))
            }
            wire::STATUS_REPORT => {
                let (body, _) = wire::split::<wire::StatusReport>(message_type, body)?;
                Self::StatusReport(Status {
                    available_pages: body.available.get(),
                    committed_pages: body.committed.get(),
                    page_file_pages: body.page_file.get(),
                    zero_and_free_pages: body.zero_and_free.get(),
                    page_file_writes: body.page_file_writes.get(),
                    io_difference: body.io_difference.get(),
                })
            }
            wire::BALLOON_REQUEST => {
                let (body, _) = wire::split::<wire::TwoWords>(message_type, body)?;
                Self::BalloonRequest {
                    page_count: body.first.get(),
                }
            }
            wire::BALLOON_RESPONSE => {
                let (body, rest) = wire::split::<wire::TwoWords>(message_type, body)?;
                let packed = body.second.get();
                Self::BalloonResponse {
                    ranges: Ranges(wire::ranges(packed >> 1, rest)?),
                    more: packed & 1 != 0,
                }
            }
            wire::UNBALLOON_REQUEST => {
                let (body, rest) = wire::split::<wire::TwoWords>(message_type, body)?;
                Self::UnballoonRequest {
                    ranges: Ranges(wire::ranges(body.second.get(), rest)?),
                    more: body.first.get() & 1 != 0,
                }
            }
            wire::UNBALLOON_RESPONSE => Self::UnballoonResponse,
            wire::HOT_ADD_REQUEST => {
                let (pages, rest) = wire::split::<WireRange>(message_type, body)?;
                Self::HotAddRequest {
                    pages: *pages,
                    region: WireRange::read_from_prefix(rest).ok().map(|(region, _)| region),
                }
            }
            wire::HOT_ADD_RESPONSE => {
                let (body, _) = wire::split::<wire::TwoWords>(message_type, body)?;
                Self::HotAddResponse {
                    page_count: body.first.get(),
                    is_final: body.second.get() != 0,
                }
            }
            wire::INFORMATION => {
                let (head, data) = wire::split::<wire::Information>(message_type, body)?;
                Self::Information(wire::information(head, data))
            }
            _ => return Err(ParseError::UnknownType { message_type }),
        })
    }

    /// Writes the message into `buffer` and returns the bytes written; reserved bits are zero.
    ///
    /// # Errors
    ///
    /// [`BufferTooSmall`]; [`MAX_MESSAGE_BYTES`](super::MAX_MESSAGE_BYTES) are always enough.
    pub fn emit<'b>(&self, transaction: u32, buffer: &'b mut [u8]) -> Result<&'b [u8], BufferTooSmall> {
        let flags = |flags: u64| wire::Flags { flags: flags.into() };
        match *self {
            Self::VersionRequest {
                version,
                is_last_attempt,
            } => {
                let body = wire::VersionRequest {
                    version: version.0.into(),
                    flags: u32::from(is_last_attempt).into(),
                };
                wire::emit(wire::VERSION_REQUEST, transaction, body.as_bytes(), &[], buffer)
            }
            Self::VersionResponse { is_accepted } => {
                let body = flags(u64::from(is_accepted));
                wire::emit(wire::VERSION_RESPONSE, transaction, body.as_bytes(), &[], buffer)
            }
            Self::CapabilitiesReport {
                capabilities,
                min_page_count,
                max_page_number,
            } => {
                let body = wire::CapabilitiesReport {
                    capabilities: capabilities.0.into(),
                    min_page_count: min_page_count.into(),
                    max_page_number: max_page_number.into(),
                };
                wire::emit(wire::CAPABILITIES_REPORT, transaction, body.as_bytes(), &[], buffer)
            }
            Self::CapabilitiesResponse(answer) => {
                let body = flags(answer.bits());
                wire::emit(wire::CAPABILITIES_RESPONSE, transaction, body.as_bytes(), &[], buffer)
            }
            Self::StatusReport(status) => {
                let body = wire::StatusReport {
                    available: status.available_pages.into(),
                    committed: status.committed_pages.into(),
                    page_file: status.page_file_pages.into(),
                    zero_and_free: status.zero_and_free_pages.into(),
                    page_file_writes: status.page_file_writes.into(),
                    io_difference: status.io_difference.into(),
                };
                wire::emit(wire::STATUS_REPORT, transaction, body.as_bytes(), &[], buffer)
            }
            Self::BalloonRequest { page_count } => {
                let body = wire::TwoWords::new(page_count, 0);
                wire::emit(wire::BALLOON_REQUEST, transaction, body.as_bytes(), &[], buffer)
            }
            Self::BalloonResponse { ranges, more } => {
                let body = wire::TwoWords::new(0, ranges.wire_count() << 1 | u32::from(more));
                wire::emit(
                    wire::BALLOON_RESPONSE,
                    transaction,
                    body.as_bytes(),
                    ranges.0.as_bytes(),
                    buffer,
                )
            }
            Self::UnballoonRequest { ranges, more } => {
                let body = wire::TwoWords::new(u32::from(more), ranges.wire_count());
                wire::emit(
                    wire::UNBALLOON_REQUEST,
                    transaction,
                    body.as_bytes(),
                    ranges.0.as_bytes(),
                    buffer,
                )
            }
            Self::UnballoonResponse => wire::emit(wire::UNBALLOON_RESPONSE, transaction, &[], &[], buffer),
            Self::HotAddRequest { pages, region } => {
                let rest = region.as_ref().map_or(&[][..], IntoBytes::as_bytes);
                wire::emit(wire::HOT_ADD_REQUEST, transaction, pages.as_bytes(), rest, buffer)
            }
            Self::HotAddResponse { page_count, is_final } => {
                let body = wire::TwoWords::new(page_count, u32::from(is_final));
                wire::emit(wire::HOT_ADD_RESPONSE, transaction, body.as_bytes(), &[], buffer)
            }
            Self::Information(information) => {
                let (kind, claimed_bytes, count) = match information {
                    Information::MaxPageCount(count) => (wire::INFORMATION_MAX_PAGE_COUNT, 8, Some(count)),
                    Information::Other { kind, claimed_bytes } => (kind, claimed_bytes, None),
                };
                let count = count.map(u64::to_le_bytes);
                let data: &[u8] = count.as_ref().map_or(&[], |bytes| bytes);
                let size = if data.is_empty() { 8 } else { 16 };
                let body = wire::Information {
                    reserved: 0.into(),
                    size_bytes: size.into(),
                    kind: kind.into(),
                    data_bytes: claimed_bytes.into(),
                };
                wire::emit(wire::INFORMATION, transaction, body.as_bytes(), data, buffer)
            }
        }
    }
}
