package main

import (
	_ "github.com/grafana/loki/v3/clients/pkg/logentry/stages"
	_ "github.com/grafana/loki/v3/pkg/logql"
	_ "github.com/grafana/loki/v3/pkg/logql/syntax"
	_ "github.com/prometheus/prometheus/rules"
	_ "github.com/prometheus/prometheus/model/rulefmt"
)

func main() {}
