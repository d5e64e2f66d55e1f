module memory-cdc/benchmarks/go-pq-cdc

go 1.22.4

// Those that go-pq-cdc's own benchmark names beside each other.
require (
	github.com/Trendyol/go-pq-cdc v1.0.3
	github.com/Trendyol/go-pq-cdc-kafka v1.0.3
	github.com/segmentio/kafka-go v0.4.47
)
