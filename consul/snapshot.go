package consul

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/proconsul/proconsul/discovery"
)

// SnapshotFile keeps a catalog on disk, so that a replica that starts while
// Consul is away serves what was last known. The file is one JSON document
// with a version and a checksum, readable by its owner only, and is replaced
// as a whole. It is safe for concurrent use.
type SnapshotFile struct {
	path    string
	catalog *discovery.Catalog
	log     *slog.Logger
	dirty   chan struct{}
}

// NewSnapshotFile returns the file at path for catalog; it touches no disk.
func NewSnapshotFile(path string, catalog *discovery.Catalog, log *slog.Logger) *SnapshotFile {
	return &SnapshotFile{path: path, catalog: catalog, log: log.With("component", "snapshot"), dirty: make(chan struct{}, 1)}
}

const (
	snapshotFormat  = "proconsul-catalog"
	snapshotVersion = 1
	snapshotLimit   = 512 << 20
	saveGap         = time.Second
	// Where nothing changes the file is still written now and then: its age
	// says when Consul last confirmed it.
	saveIdle = time.Minute
)

type snapshotDoc struct {
	Format   string          `json:"format"`
	Version  int             `json:"version"`
	SavedAt  time.Time       `json:"saved_at"`
	SHA256   string          `json:"sha256"` // of the bytes of services
	Services json.RawMessage `json:"services"`
}

type savedService struct {
	Key         string          `json:"key"`
	Index       uint64          `json:"index"`
	ConfirmedAt time.Time       `json:"confirmed_at"`
	Instances   []savedInstance `json:"instances"`
}

type savedInstance struct {
	ID         string            `json:"id"`
	Service    string            `json:"service"`
	ServiceID  string            `json:"service_id"`
	Node       string            `json:"node"`
	Datacenter string            `json:"datacenter,omitempty"`
	Address    string            `json:"address"`
	Status     string            `json:"status"`
	Weight     int               `json:"weight"`
	Tags       []string          `json:"tags,omitempty"`
	Meta       map[string]string `json:"meta,omitempty"`
	Zone       string            `json:"zone,omitempty"`
}

// Loaded says what a Load brought.
type Loaded struct {
	Services  int           // queries whose pools now serve from the file
	Instances int           // in them
	Age       time.Duration // since Consul last confirmed the oldest of them
}

// Load gives the catalog what the file holds of the given queries, marked
// stale, where no answer has arrived yet. Without a file it returns an error
// that is fs.ErrNotExist; a file that is damaged, or of another version, is
// left alone and changes nothing: the error says what is wrong with it.
func (f *SnapshotFile) Load(queries []discovery.Query) (Loaded, error) {
	services, err := f.read()
	if err != nil {
		return Loaded{}, fmt.Errorf("snapshot %s: %w", f.path, err)
	}
	want := make(map[string]bool, len(queries))
	for _, q := range queries {
		want[q.Key()] = true
	}
	var l Loaded
	for _, s := range services {
		if !want[s.Key] {
			continue
		}
		snap := discovery.Snapshot{Service: s.Key, Index: s.Index, At: s.ConfirmedAt}
		for _, in := range s.Instances {
			snap.Instances = append(snap.Instances, discovery.Instance{ID: in.ID, Service: in.Service, ServiceID: in.ServiceID,
				Node: in.Node, Datacenter: in.Datacenter, Address: in.Address, Status: checkStatus(in.Status), Weight: in.Weight,
				Tags: in.Tags, Meta: in.Meta, Version: in.Meta[metaVersion], Zone: in.Zone})
		}
		if f.catalog.ApplyWarm(s.Key, snap, s.ConfirmedAt) {
			l.Services++
			l.Instances += len(snap.Instances)
			l.Age = max(l.Age, time.Since(s.ConfirmedAt))
		}
	}
	return l, nil
}

func (f *SnapshotFile) read() ([]savedService, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, snapshotLimit))
	if err != nil {
		return nil, err
	}
	var doc snapshotDoc
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	if doc.Format != snapshotFormat {
		return nil, errors.New("not a catalog snapshot")
	}
	if doc.Version != snapshotVersion {
		return nil, fmt.Errorf("version %d, this program reads %d", doc.Version, snapshotVersion)
	}
	if sum := sha256.Sum256(doc.Services); hex.EncodeToString(sum[:]) != doc.SHA256 {
		return nil, errors.New("damaged: its checksum does not fit")
	}
	var services []savedService
	if err := json.Unmarshal(doc.Services, &services); err != nil {
		return nil, fmt.Errorf("damaged: %w", err)
	}
	return services, nil
}

// Touch says that the catalog has changed. It does not block.
func (f *SnapshotFile) Touch() { wake(f.dirty) }

// Run writes the file after each Touch, at most once a second, and a last time
// when ctx ends. A file that cannot be written is logged once, until it can.
func (f *SnapshotFile) Run(ctx context.Context) error {
	failed := false
	save := func() {
		err := f.Save()
		switch {
		case err != nil && !failed:
			f.log.Error("catalog snapshot cannot be written", "err", err)
		case err == nil && failed:
			f.log.Info("catalog snapshot is written again", "path", f.path)
		}
		failed = err != nil
	}
	idle := time.NewTicker(saveIdle)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			save()
			return nil
		case <-f.dirty:
		case <-idle.C:
		}
		save()
		wait(ctx, saveGap)
	}
}

// Save writes the file now: a new one beside it, then a rename, so that a
// crash at any moment leaves the old one or the new one. Where the catalog
// knows nothing yet, the old file stays.
func (f *SnapshotFile) Save() error {
	services := []savedService{}
	for _, st := range f.catalog.States() {
		if !st.Loaded {
			continue
		}
		s := savedService{Key: st.Key, Index: st.Snapshot.Index, ConfirmedAt: st.FreshAt.UTC(), Instances: []savedInstance{}}
		for _, in := range st.Snapshot.Instances {
			s.Instances = append(s.Instances, savedInstance{ID: in.ID, Service: in.Service, ServiceID: in.ServiceID, Node: in.Node,
				Datacenter: in.Datacenter, Address: in.Address, Status: in.Status.String(), Weight: in.Weight, Tags: in.Tags,
				Meta: in.Meta, Zone: in.Zone})
		}
		services = append(services, s)
	}
	if len(services) == 0 {
		return nil
	}
	payload, err := json.Marshal(services)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	sum := sha256.Sum256(payload)
	text, err := json.Marshal(snapshotDoc{Format: snapshotFormat, Version: snapshotVersion, SavedAt: time.Now().UTC(),
		SHA256: hex.EncodeToString(sum[:]), Services: payload})
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err := replaceFile(f.path, append(text, '\n')); err != nil {
		return fmt.Errorf("snapshot %s: %w", f.path, err)
	}
	return nil
}

// replaceFile makes path hold text, readable by the owner only, or leaves it
// as it was.
func replaceFile(path string, text []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name())
		}
	}()
	if _, err = tmp.Write(text); err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	// The name is in the directory's own blocks. Not every file system can
	// sync a directory, and the content is safe without.
	if d, derr := os.Open(dir); derr == nil {
		_ = d.Sync()
		_ = d.Close()
	}
	return nil
}

// NoSnapshot reports whether an error of Load only says that there is no file.
func NoSnapshot(err error) bool { return errors.Is(err, fs.ErrNotExist) }
