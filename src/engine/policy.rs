//! May this caller use this?
