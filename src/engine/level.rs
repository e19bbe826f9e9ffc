//! Power levels: which models a level offers and the limits it puts on them.
