//! The core alone: messages in, stores and messages out, with a fake kernel and a real ledger.
