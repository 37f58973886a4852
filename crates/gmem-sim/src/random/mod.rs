//! Operations drawn by a seed, and the model of what memory must contain.
