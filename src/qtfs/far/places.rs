//! Where something without a file handle was found last: a name in a directory.

use std::ffi::{CStr, CString};
use std::sync::Mutex;

#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The directory's node id.
    pub(super) parent: u64,
    pub(super) name: CString,
}

#[derive(Debug)]
pub(super) struct PlaceOf(Mutex<Place>);

impl PlaceOf {
    pub(super) fn new(parent: u64, name: &CStr) -> Self {
        Self(Mutex::new(Place { parent, name: name.into() }))
    }

    pub(super) fn get(&self) -> Place {
        self.0.lock().expect("never poisoned: panics abort").clone()
    }

    /// It was found again; as a rule where it was.
    pub(super) fn set(&self, parent: u64, name: &CStr) {
        let mut place = self.0.lock().expect("never poisoned: panics abort");
        if place.parent != parent || place.name.as_c_str() != name {
            *place = Place { parent, name: name.into() };
        }
    }
}
