//! Every answer that is a no: one table to status, type, code and text, in each dialect's error shape.
