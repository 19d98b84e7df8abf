package devcatalog

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// store is the key/value store, guarded by Server.mu. A row is never changed.
type store map[string]*keyRow

// topics are those of all keys.
func (st store) topics() []topic {
	topics := make([]topic, 0, len(st))
	for key := range st {
		topics = append(topics, topic{topicKey, key})
	}
	return topics
}

// under are the keys with a prefix, in order.
func (st store) under(prefix string) []string {
	var keys []string
	for key := range st {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func (k *keyRow) size() int64 { return int64(len(k.Key)+len(k.Value)) + 64 }

// errMissingKey is the answer where a key is needed.
func errMissingKey() error { return badRequest("Missing key name") }

func (s *Server) kvGet(w http.ResponseWriter, r *http.Request) error {
	key := trim(r, "/v1/kv/")
	q, err := s.parseQuery(r)
	if err != nil {
		return err
	}
	switch {
	case q.params.Has("keys"):
		return s.kvKeys(w, r, q, key)
	case q.params.Has("recurse"):
		return s.kvList(w, r, q, key)
	case key == "":
		return errMissingKey()
	}

	var row *keyRow
	if err := s.read(w, r, q, topic{topicKey, key}, func() { row = s.kv[key] }); err != nil {
		return err
	}
	if row == nil {
		w.WriteHeader(http.StatusNotFound)
		return nil
	}
	if q.params.Has("raw") {
		h := w.Header()
		h.Set("Content-Type", "text/plain")
		h.Set("Content-Length", strconv.Itoa(len(row.Value)))
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Content-Security-Policy", "sandbox")
		_, _ = w.Write(row.Value) // an error here is a client that left
		return nil
	}
	return writeJSON(w, r, []*keyRow{row})
}

func (s *Server) kvList(w http.ResponseWriter, r *http.Request, q query, prefix string) error {
	var rows []*keyRow
	if err := s.read(w, r, q, topic{topicPrefix, prefix}, func() {
		for _, key := range s.kv.under(prefix) {
			rows = append(rows, s.kv[key])
		}
	}); err != nil {
		return err
	}
	if len(rows) == 0 {
		w.WriteHeader(http.StatusNotFound)
		return nil
	}
	return writeJSON(w, r, rows)
}

// kvKeys lists keys, those below a separator as one.
func (s *Server) kvKeys(w http.ResponseWriter, r *http.Request, q query, prefix string) error {
	separator := q.params.Get("separator")
	keys := []string{}
	if err := s.read(w, r, q, topic{topicPrefix, prefix}, func() {
		for _, key := range s.kv.under(prefix) {
			if separator != "" {
				if i := strings.Index(key[len(prefix):], separator); i >= 0 {
					key = key[:len(prefix)+i+len(separator)]
				}
			}
			if len(keys) == 0 || keys[len(keys)-1] != key {
				keys = append(keys, key)
			}
		}
	}); err != nil {
		return err
	}
	if len(keys) == 0 && prefix != "" {
		w.WriteHeader(http.StatusNotFound)
		return nil
	}
	return writeJSON(w, r, keys)
}

// casIndex reads ?cas. Without one, any state will do.
func casIndex(params url.Values) (index uint64, given bool, err error) {
	if !params.Has("cas") {
		return 0, false, nil
	}
	index, err = strconv.ParseUint(params.Get("cas"), 10, 64)
	return index, true, err
}

func (s *Server) kvPut(w http.ResponseWriter, r *http.Request) error {
	key, params := trim(r, "/v1/kv/"), r.URL.Query()
	if err := s.checkScope(params); err != nil {
		return err
	}
	if key == "" {
		return errMissingKey()
	}
	if err := checkNames(key); err != nil {
		return err
	}
	if params.Has("acquire") { // there are no sessions
		return serverError("raft apply failed: invalid session %q", params.Get("acquire"))
	}
	if params.Has("release") {
		return writeJSON(w, r, false)
	}
	var flags uint64
	if params.Has("flags") {
		var err error
		if flags, err = strconv.ParseUint(params.Get("flags"), 10, 64); err != nil {
			return err
		}
	}
	cas, conditional, err := casIndex(params)
	if err != nil {
		return err
	}
	if r.ContentLength > maxBody {
		return &apiError{http.StatusRequestEntityTooLarge, tooLarge(r.ContentLength)}
	}
	value, err := io.ReadAll(r.Body)
	if err != nil {
		if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
			return err
		}
		return badRequest("%v", err) // the body broke off
	}
	if err := s.needsLeader(); err != nil {
		return err
	}
	if len(value) == 0 {
		value = nil
	}
	ok, err := s.putKey(&keyRow{Key: key, Flags: flags, Value: value}, cas, conditional)
	if err != nil {
		return err
	}
	return writeJSON(w, r, ok)
}

// putKey writes a key and reports whether the condition let it.
func (s *Server) putKey(row *keyRow, cas uint64, conditional bool) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.kv[row.Key]
	if conditional {
		if cas == 0 && old != nil || cas != 0 && (old == nil || old.ModifyIndex != cas) {
			return false, nil
		}
	}
	if old != nil && old.Flags == row.Flags && string(old.Value) == string(row.Value) {
		return true, nil // what is already there is no change
	}
	if old == nil && len(s.kv) >= s.opts.Limits.Keys {
		return false, full("keys", s.opts.Limits.Keys)
	}
	added := row.size()
	if old != nil {
		added -= old.size()
	}
	if err := s.roomForBytes(added); err != nil {
		return false, err
	}
	row.ModifyIndex = s.indexes.next()
	row.CreateIndex = row.ModifyIndex
	if old != nil {
		row.CreateIndex = old.CreateIndex
		s.bytes -= old.size()
	}
	s.bytes += row.size()
	s.kv[row.Key] = row
	s.indexes.bump(topic{topicKey, row.Key})
	return true, nil
}

func (s *Server) kvDelete(w http.ResponseWriter, r *http.Request) error {
	key, params := trim(r, "/v1/kv/"), r.URL.Query()
	if err := s.checkScope(params); err != nil {
		return err
	}
	recurse := params.Has("recurse")
	if key == "" && !recurse {
		return errMissingKey()
	}
	cas, conditional, err := casIndex(params)
	if err != nil {
		return err
	}
	if err := s.needsLeader(); err != nil {
		return err
	}
	return writeJSON(w, r, s.deleteKeys(key, recurse, cas, conditional))
}

// deleteKeys removes a key, or all keys with a prefix, in one change. It
// reports whether the condition let it: what is gone already is no failure.
func (s *Server) deleteKeys(key string, recurse bool, cas uint64, conditional bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	keys := []string{key}
	if recurse {
		keys = s.kv.under(key)
	} else if conditional {
		if old := s.kv[key]; old != nil && old.ModifyIndex != cas {
			return false
		}
	}
	keys = slices.DeleteFunc(keys, func(k string) bool { return s.kv[k] == nil })
	if len(keys) == 0 {
		return true
	}
	s.indexes.next()
	for _, k := range keys {
		s.bytes -= s.kv[k].size()
		delete(s.kv, k)
		s.indexes.bump(topic{topicKey, k})
	}
	return true
}
