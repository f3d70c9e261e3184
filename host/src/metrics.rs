//! Error metrics between an output and its reference.
