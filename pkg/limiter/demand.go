package limiter

// demand is how fast an identity's tokens are asked for at this replica:
// those that were denied count too, so that leases stay fair between replicas
// under uneven load.
type demand struct {
	rate  float64 // tokens per µs
	since int64   // mono of the last measurement
	asked int64   // tokens since then
	size  int64   // of the last lease
}

// ahead returns how many tokens to take beyond those that callers wait for:
// what half a lease's life is likely to need, and at most four times the last
// lease, so that one burst does not strand a window's worth.
func (d *demand) ahead(now, tau, waiting int64) int64 {
	elapsed := max(1, now-d.since)
	// A measurement weighs by the time that it covers, against about a lease's
	// life of memory.
	weight := float64(elapsed) / float64(elapsed+tau/2)
	d.rate += weight * (float64(d.asked+waiting)/float64(elapsed) - d.rate)
	d.since, d.asked = now, 0
	return min(int64(d.rate*float64(tau)/2), 4*d.size+1)
}
