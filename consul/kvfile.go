package consul

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// KVFile keeps the keys below a prefix on disk, so that a replica that starts
// while Consul is away knows what was last there. Like a SnapshotFile it is one
// JSON document with a checksum, readable by its owner only, and is replaced as
// a whole.
type KVFile struct{ path, prefix string }

// NewKVFile returns the file at path for a prefix; it touches no disk.
func NewKVFile(path, prefix string) *KVFile { return &KVFile{path, prefix} }

const kvFormat = "proconsul-kv"

type kvDoc struct {
	Format  string          `json:"format"`
	Version int             `json:"version"`
	SavedAt time.Time       `json:"saved_at"`
	Prefix  string          `json:"prefix"`
	Index   uint64          `json:"index"`
	SHA256  string          `json:"sha256"` // of the bytes of pairs
	Pairs   json.RawMessage `json:"pairs"`
}

// Save replaces the file.
func (f *KVFile) Save(pairs []Pair, index uint64) error {
	if pairs == nil {
		pairs = []Pair{}
	}
	payload, err := json.Marshal(pairs)
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	sum := sha256.Sum256(payload)
	text, err := json.Marshal(kvDoc{Format: kvFormat, Version: 1, SavedAt: time.Now().UTC(), Prefix: f.prefix, Index: index,
		SHA256: hex.EncodeToString(sum[:]), Pairs: payload})
	if err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	if err := replaceFile(f.path, append(text, '\n')); err != nil {
		return fmt.Errorf("snapshot %s: %w", f.path, err)
	}
	return nil
}

// Load returns what the file holds. Without a file the error is one that
// NoSnapshot knows; a file that is damaged, of another version or of another
// prefix is left alone.
func (f *KVFile) Load() (pairs []Pair, index uint64, err error) {
	pairs, index, err = f.read()
	if err != nil {
		return nil, 0, fmt.Errorf("snapshot %s: %w", f.path, err)
	}
	return pairs, index, nil
}

func (f *KVFile) read() ([]Pair, uint64, error) {
	file, err := os.Open(f.path)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, snapshotLimit))
	if err != nil {
		return nil, 0, err
	}
	var doc kvDoc
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, 0, fmt.Errorf("damaged: %w", err)
	}
	sum := sha256.Sum256(doc.Pairs)
	switch {
	case doc.Format != kvFormat:
		return nil, 0, errors.New("not a snapshot of keys")
	case doc.Version != 1:
		return nil, 0, fmt.Errorf("version %d, this program reads 1", doc.Version)
	case hex.EncodeToString(sum[:]) != doc.SHA256:
		return nil, 0, errors.New("damaged: its checksum does not fit")
	case doc.Prefix != f.prefix:
		return nil, 0, fmt.Errorf("of the prefix %s", doc.Prefix)
	}
	var pairs []Pair
	if err := json.Unmarshal(doc.Pairs, &pairs); err != nil {
		return nil, 0, fmt.Errorf("damaged: %w", err)
	}
	return pairs, doc.Index, nil
}
