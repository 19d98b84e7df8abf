package transport

// UploadGrace is how long the end of an answer waits for the upload.
const UploadGrace = uploadGrace

// Idle returns how many connections are kept for an address, and whether the
// address is known at all.
func (t *Transport) Idle(addr string) (n int, known bool) {
	t.mu.RLock()
	h := t.hosts[0][addr]
	t.mu.RUnlock()
	if h == nil {
		return 0, false
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.idle), true
}
