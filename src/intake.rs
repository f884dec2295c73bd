//! READS: the manifests folder into the store.
//! Not here: parsing; the watcher only wakes us, the whole folder is re-read.
