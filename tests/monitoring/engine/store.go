package main

import (
	"context"
	"sort"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/prometheus/prometheus/model/labels"

	"github.com/grafana/loki/v3/pkg/iter"
	"github.com/grafana/loki/v3/pkg/logproto"
	"github.com/grafana/loki/v3/pkg/logql"
)

// stream is the entries of one set of labels, in the order of time.
type stream struct {
	labels  labels.Labels
	entries []entry
}

// streams groups entries by their labels.
func streams(entries []entry) []stream {
	byLabels := map[string]*stream{}
	for _, one := range entries {
		set := labels.FromMap(one.Labels)
		found, ok := byLabels[set.String()]
		if !ok {
			found = &stream{labels: set}
			byLabels[set.String()] = found
		}
		found.entries = append(found.entries, one)
	}
	var all []stream
	for _, found := range byLabels {
		sort.SliceStable(found.entries, func(i, j int) bool {
			return found.entries[i].At < found.entries[j].At
		})
		all = append(all, *found)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].labels.String() < all[j].labels.String() })
	return all
}

// store answers Loki's engine from memory.  Everything about the language, that is line filters,
// parsers, unwrapping, is done by Loki's own pipelines; here entries are only chosen by labels and time.
type store struct{ streams []stream }

func (s store) SelectLogs(_ context.Context, asked logql.SelectLogParams) (iter.EntryIterator, error) {
	selector, err := asked.LogSelector()
	if err != nil {
		return nil, err
	}
	pipeline, err := selector.Pipeline()
	if err != nil {
		return nil, err
	}
	found := map[string]*logproto.Stream{}
	for _, one := range s.matching(selector.Matchers()) {
		through := pipeline.ForStream(one.labels)
		for _, e := range one.entries {
			line, set, ok := through.Process(e.At, []byte(e.Line), labels.FromMap(e.Metadata))
			if !ok || !within(e.At, asked.Start.UnixNano(), asked.End.UnixNano()) {
				continue
			}
			into, ok := found[set.String()]
			if !ok {
				into = &logproto.Stream{Labels: set.String(), Hash: set.Hash()}
				found[set.String()] = into
			}
			into.Entries = append(into.Entries, logproto.Entry{Timestamp: time.Unix(0, e.At), Line: string(line)})
		}
	}
	var iterators []iter.EntryIterator
	for _, one := range found {
		iterators = append(iterators, iter.NewStreamIterator(*one))
	}
	return iter.NewSortEntryIterator(iterators, asked.Direction), nil
}

func (s store) SelectSamples(_ context.Context, asked logql.SelectSampleParams) (iter.SampleIterator, error) {
	expr, err := asked.Expr()
	if err != nil {
		return nil, err
	}
	selector, err := expr.Selector()
	if err != nil {
		return nil, err
	}
	extractors, err := expr.Extractors()
	if err != nil {
		return nil, err
	}
	found := map[string]*logproto.Series{}
	for _, one := range s.matching(selector.Matchers()) {
		for _, extractor := range extractors {
			through := extractor.ForStream(one.labels)
			for _, e := range one.entries {
				if !within(e.At, asked.Start.UnixNano(), asked.End.UnixNano()) {
					continue
				}
				samples, ok := through.Process(e.At, []byte(e.Line), labels.FromMap(e.Metadata))
				if !ok {
					continue
				}
				for _, sample := range samples {
					set := sample.Labels.String()
					into, ok := found[set]
					if !ok {
						into = &logproto.Series{Labels: set, StreamHash: through.BaseLabels().Hash()}
						found[set] = into
					}
					into.Samples = append(into.Samples, logproto.Sample{
						Timestamp: e.At, Value: sample.Value, Hash: xxhash.Sum64String(e.Line),
					})
				}
			}
		}
	}
	var all []logproto.Series
	for _, one := range found {
		sort.Sort(one)
		all = append(all, *one)
	}
	return iter.NewMultiSeriesIterator(all), nil
}

func (s store) matching(matchers []*labels.Matcher) []stream {
	var found []stream
next:
	for _, one := range s.streams {
		for _, matcher := range matchers {
			if !matcher.Matches(one.labels.Get(matcher.Name)) {
				continue next
			}
		}
		found = append(found, one)
	}
	return found
}

// within tells whether a time is in a query's range, both ends included, as Loki's stores have it for
// samples; the engine cuts the first nanosecond off by itself.
func within(at, start, end int64) bool {
	return at >= start && at <= end
}
