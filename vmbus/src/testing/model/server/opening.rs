//! Opening, closing and re-targeting of channels.

use alloc::format;
use alloc::string::String;

use super::super::bytes::{join, low16, to_usize, u16_at, u32_at};
use super::super::config::Personality;
use super::super::ring::Rings;
use super::super::{Event, State};
use super::{Opening, UNSUCCESSFUL};

impl State {
    pub(super) fn open_channel(&mut self, message: &[u8]) {
        let (id, open_id, gpadl) = (u32_at(message, 8), u32_at(message, 12), u32_at(message, 16));
        let (target_vp, downstream) = (u32_at(message, 20), u32_at(message, 24));
        let personality = self.config.personality;
        let Some(channel) = self.server.channels.get(&id) else {
            self.violation(format!("OPENCHANNEL for channel {id}, which does not exist"));
            return;
        };
        if channel.is_rescinded {
            // The rescind is on its way; real hosts do not answer.
            return;
        }
        if channel.opening.is_some() {
            self.violation(format!("channel {id} is opened a second time"));
            if personality == Personality::HyperV {
                self.answer_open(id, open_id, UNSUCCESSFUL);
            }
            return;
        }
        if channel.has_failed_open && personality == Personality::OpenVmm {
            // Its bug: such a channel stays shut.
            return;
        }
        let (event_flag, signal_connection) = self.signal_parameters_of(id, message);
        match self.check_opening(id, gpadl, target_vp, downstream) {
            Err(problem) => {
                self.violation(problem);
                self.fail_open(id, open_id);
            }
            Ok(_) if self.reply_is_failure(5) => self.fail_open(id, open_id),
            Ok(rings) => {
                let mut user_data = [0; 120];
                user_data.copy_from_slice(&message[28..148]);
                let feature_bits = self.config.ring_feature_bits;
                rings.start(self.platform, feature_bits);
                if let Some(channel) = self.server.channels.get_mut(&id) {
                    channel.connection = signal_connection.unwrap_or(channel.connection);
                    channel.rings = Some(rings);
                    channel.opening = Some(Opening {
                        gpadl,
                        target_vp,
                        event_flag,
                        user_data,
                    });
                    channel.counters.openings += 1;
                }
                self.answer_open(id, open_id, 0);
                self.events.push_back(Event::Opened(id));
            }
        }
    }

    /// The event flag for the guest, and the connection for the host if the guest chose it.
    fn signal_parameters_of(&mut self, id: u32, message: &[u8]) -> (u16, Option<u32>) {
        let features = self.server.contact.as_ref().map_or(0, |contact| contact.features);
        if features & 1 == 0 {
            return (low16(u64::from(id)), None);
        }
        if message.len() < 156 {
            self.violation(format!(
                "OPENCHANNEL of {} bytes, 156 with the signal parameters agreed on",
                message.len()
            ));
            return (low16(u64::from(id)), None);
        }
        (u16_at(message, 152), Some(u32_at(message, 148)))
    }

    fn fail_open(&mut self, id: u32, open_id: u32) {
        if let Some(channel) = self.server.channels.get_mut(&id) {
            channel.has_failed_open = true;
        }
        let is_qemu = self.config.personality == Personality::Qemu;
        self.answer_open(id, open_id, if is_qemu { 1 } else { UNSUCCESSFUL });
    }

    fn check_opening(&self, id: u32, gpadl: u32, target_vp: u32, downstream: u32) -> Result<Rings, String> {
        let entry = self.server.gpadls.get(&gpadl);
        let entry = entry.filter(|entry| !entry.ranges.is_empty());
        let entry = entry.ok_or_else(|| format!("channel {id}: the ring's GPADL {gpadl} does not exist"))?;
        if entry.channel != id {
            return Err(format!(
                "channel {id}: GPADL {gpadl} belongs to channel {}",
                entry.channel
            ));
        }
        if !self.is_target(target_vp) {
            return Err(format!("channel {id}: there is no virtual processor {target_vp}"));
        }
        let [range] = entry.ranges.as_slice() else {
            return Err(format!("channel {id}: a ring's GPADL has one range"));
        };
        let pages = &range.page_numbers;
        let downstream = to_usize(u64::from(downstream));
        if range.offset != 0 || !range.len_bytes.is_multiple_of(4096) {
            return Err(format!("channel {id}: a ring's GPADL is whole pages (R14)"));
        }
        if downstream < 2 || downstream + 2 > pages.len() {
            return Err(format!(
                "channel {id}: rings of {downstream} and {} pages (R14)",
                pages.len() - downstream.min(pages.len())
            ));
        }
        let mut rings = Rings::new(&pages[..downstream], &pages[downstream..]);
        rings.signals_at_equality = self.config.personality != Personality::HyperV;
        rings
            .check_fresh(self.platform)
            .map_err(|problem| format!("channel {id}: {problem}"))?;
        Ok(rings)
    }

    /// Whether a channel's signals can go there: all ones means nowhere.
    fn is_target(&self, vp_index: u32) -> bool {
        vp_index == u32::MAX || self.processor_of_vp(vp_index).is_some()
    }

    fn answer_open(&mut self, id: u32, open_id: u32, status: u32) {
        let answer = join(&[
            &[6, 0, 0, 0, 0, 0, 0, 0],
            &id.to_le_bytes(),
            &open_id.to_le_bytes(),
            &status.to_le_bytes(),
        ]);
        self.reply(5, answer);
    }

    pub(super) fn close_channel(&mut self, message: &[u8]) {
        let id = u32_at(message, 8);
        match self.server.channels.get(&id) {
            None => self.violation(format!("CLOSECHANNEL for channel {id}, which does not exist")),
            // Crossed with the rescind.
            Some(channel) if channel.is_rescinded => {}
            Some(channel) if channel.opening.is_none() => {
                self.violation(format!("channel {id} is closed, but not open"));
            }
            Some(_) => self.end_opening(id),
        }
    }

    pub(in super::super) fn end_opening(&mut self, id: u32) {
        let Some(channel) = self.server.channels.get_mut(&id) else {
            return;
        };
        channel.rings = None;
        if channel.opening.take().is_some() {
            self.events.push_back(Event::Closed(id));
        }
    }

    pub(super) fn modify_channel(&mut self, message: &[u8]) {
        let (id, target_vp) = (u32_at(message, 8), u32_at(message, 12));
        let version = self.server.contact.as_ref().map_or(0, |contact| contact.version);
        if version < 0x4_0001 || self.config.personality == Personality::Qemu {
            self.violation(format!("MODIFYCHANNEL on version {version:#x}, which has none"));
            return;
        }
        let is_valid = self.is_target(target_vp);
        let Some(channel) = self.server.channels.get_mut(&id) else {
            self.violation(format!("MODIFYCHANNEL for channel {id}, which does not exist"));
            return;
        };
        if channel.is_rescinded {
            return;
        }
        let status = match &mut channel.opening {
            Some(opening) if is_valid => {
                opening.target_vp = target_vp;
                0
            }
            _ => {
                self.violation(format!(
                    "MODIFYCHANNEL of channel {id} to virtual processor {target_vp}"
                ));
                UNSUCCESSFUL
            }
        };
        if version >= 0x5_0003 {
            let answer = join(&[&[24, 0, 0, 0, 0, 0, 0, 0], &id.to_le_bytes(), &status.to_le_bytes()]);
            self.reply(22, answer);
        }
    }
}
