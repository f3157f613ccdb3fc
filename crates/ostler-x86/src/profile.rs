//! What a vCPU says of itself while a profile is made.

use std::sync::Arc;

use ostler_engine::profile::{Activity, Published};

use crate::cpu::Cpu;

impl Cpu {
    /// Says what it does from now on. Code translated before does not, and is dropped.
    pub fn publish(&mut self) -> Arc<Published> {
        if let Some(published) = &self.published {
            return Arc::clone(published);
        }
        let published = Arc::new(Published::default());
        self.jit.publish(&mut self.mmu.tlb.context, &self.code, published.place_word() as u64);
        Arc::clone(self.published.insert(published))
    }

    /// Says that `activity` begins; the answer is for [`Cpu::goes_back_to`].
    #[inline]
    pub fn begins(&self, activity: Activity) -> Activity {
        self.published.as_ref().map_or(activity, |published| published.begin(activity))
    }

    #[inline]
    pub fn goes_back_to(&self, before: Activity) {
        self.begins(before);
    }

    /// Says which block runs.
    #[inline(always)]
    pub fn is_at(&self, linear: u64) {
        if let Some(published) = &self.published {
            published.set_place(linear);
        }
    }

    /// Does what counts as `activity`.
    pub fn counted_as<R>(&mut self, activity: Activity, act: impl FnOnce(&mut Self) -> R) -> R {
        let before = self.begins(activity);
        let result = act(self);
        self.goes_back_to(before);
        result
    }
}
