package config

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxConsumer bounds the text of one consumer.
const maxConsumer = 64 << 10

// ParseConsumer reads one consumer from a text of its own, as a key of
// Consul's KV store: what stands below an element of consumers, in YAML or
// JSON, by the same rules. key stands for the text in messages. The consumer
// has the given name, and may repeat it. It is for the configuration cfg, whose
// methods and listeners it may name. The text refers to nothing outside.
func ParseConsumer(key, name string, text []byte, cfg *Config) (Consumer, error) {
	s := &source{name: key, text: text}
	b := newBuilder(LoadOptions{Pure: true}, []*source{s})
	c, err := b.consumer(s, name, cfg)
	if err != nil {
		return c, err
	}
	faults := b.finish()
	for i := range faults.All {
		f := &faults.All[i]
		f.Path = strings.TrimPrefix(strings.TrimPrefix(f.Path, "consumers[0]"), ".")
		f.Message = strings.ReplaceAll(strings.ReplaceAll(f.Message, "consumers[0].", ""), "consumers[0]", "the consumer")
	}
	if faults.Errors() > 0 {
		return Consumer{}, faults
	}
	return c, nil
}

func (b *builder) consumer(s *source, name string, cfg *Config) (Consumer, error) {
	if len(s.text) > maxConsumer {
		return Consumer{}, fmt.Errorf("%s is larger than %d bytes", s.name, maxConsumer)
	}
	if f := s.parse(); f != nil {
		if f.Line > 0 {
			f.snippet = s.snippet(f.Line)
		}
		b.add(*f)
		return Consumer{}, nil
	}
	if s.root == nil {
		return Consumer{}, fmt.Errorf("%s is empty", s.name)
	}
	one := s.root
	s.hideSensitive(one)
	if !hasKey(one, "name") {
		one.Content = append([]*yaml.Node{scalarNode("name", one), scalarNode(name, one)}, one.Content...)
	}
	// As if it stood in a configuration.
	list := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: []*yaml.Node{one}}
	s.root = &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map", Content: []*yaml.Node{scalarNode("consumers", one), list}}
	b.top(s)
	c, err := b.decode(map[string]string{}, map[string]string{})
	if err != nil { // the builder let something through: ours to mend, not the operator's
		return Consumer{}, fmt.Errorf("decode %s: %w", s.name, err)
	}
	if len(c.Consumers) != 1 {
		return Consumer{}, nil
	}
	c.Auth, c.Listen = cfg.Auth, cfg.Listen
	b.methods = cfg.Auth
	b.required(reflect.ValueOf(c).Elem(), "")
	b.checkConsumers(c)
	if got := c.Consumers[0].Name; got != name && got != "" {
		b.bad("consumers[0].name", got, CodeContradicts, fmt.Sprintf("is not the name that the key has (%s)", name), "leave it out")
	}
	return c.Consumers[0], nil
}

func hasKey(n *yaml.Node, key string) bool {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return true
		}
	}
	return false
}

func scalarNode(text string, at *yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Line: at.Line, Column: at.Column}
}

// Crowd is a growing set of consumers, none of which takes what another has:
// a name, a key, a login, or what makes a token or a certificate a consumer's.
// None of them can be confused with callers that methods name, or whose
// certificates another listener's issuers vouch for.
type Crowd struct {
	cfg   *Config
	list  []Consumer
	taken map[mark]string
}

type mark struct{ what, value string }

// NewCrowd returns the crowd of a configuration's own consumers.
func NewCrowd(cfg *Config) *Crowd {
	c := &Crowd{cfg: cfg, list: slices.Clip(cfg.Consumers), taken: map[mark]string{}}
	for _, one := range cfg.Consumers {
		for _, m := range one.marks() {
			c.taken[m] = one.Name
		}
	}
	return c
}

// Consumers returns all, in the order of their coming.
func (c *Crowd) Consumers() []Consumer { return c.list }

// Add adds a consumer, or says what of it another has. The error holds no
// secret.
func (c *Crowd) Add(one Consumer) error {
	if i := c.cfg.methodNaming(one.Name); i >= 0 {
		return fmt.Errorf("its name begins with the consumer_prefix of the method %s, whose callers would be taken for it", c.cfg.Auth[i].Name)
	}
	if f := c.cfg.unvouched("", one); len(f) > 0 {
		return errors.New(f[0].Message)
	}
	marks := one.marks()
	for _, m := range marks {
		if owner, ok := c.taken[m]; ok {
			shown := fmt.Sprintf(" %q", m.value)
			if m.what == "key" {
				shown = ""
			}
			return fmt.Errorf("its %s%s is taken by the consumer %s", m.what, shown, owner)
		}
	}
	for _, m := range marks {
		c.taken[m] = one.Name
	}
	c.list = append(c.list, one)
	return nil
}

// marks are what no other consumer may have.
func (k Consumer) marks() []mark {
	out := []mark{{"name", k.Name}}
	for _, key := range k.APIKeys {
		out = append(out, mark{"key id", key.ID}, mark{"key", strings.ToLower(key.SHA256.Reveal())})
	}
	for _, l := range k.Basic {
		out = append(out, mark{"user name", l.Username})
	}
	for _, c := range k.Claims {
		out = append(out, mark{"claim", c.Method + " " + c.Claim + "=" + c.Equals})
	}
	for _, c := range k.MTLS {
		out = append(out, mark{"certificate", cmp.Or(c.Subject, c.mark().san)})
	}
	return out
}

// certMark is equal for all that make the same certificates a consumer's.
type certMark struct{ subject, san string }

func (c ConsumerCert) mark() certMark {
	return certMark{c.Subject, cmp.Or(FoldSAN(c.SAN), c.SPIFFE)}
}

// FoldSAN gives DNS names, of which case means nothing, one spelling. URIs and
// e-mail addresses keep theirs.
func FoldSAN(s string) string {
	if strings.ContainsAny(s, ":/@") {
		return s
	}
	return strings.ToLower(s)
}
