SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET transaction_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;
SET default_tablespace = '';
SET default_table_access_method = heap;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.attempts (
    run_id character varying(32) NOT NULL,
    number integer NOT NULL,
    submitted_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    event_seq integer NOT NULL,
    device_seconds double precision NOT NULL,
    flops double precision NOT NULL,
    training_images integer NOT NULL
);
CREATE TABLE public.events (
    id integer NOT NULL,
    run_id character varying(32) NOT NULL,
    seq integer NOT NULL,
    at timestamp with time zone NOT NULL,
    kind character varying(16) NOT NULL,
    body json NOT NULL
);
CREATE SEQUENCE public.events_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.events_id_seq OWNED BY public.events.id;
CREATE TABLE public.experiments (
    id integer NOT NULL,
    name character varying(200) NOT NULL,
    backbone character varying(200) NOT NULL,
    digest character varying(64) NOT NULL,
    protocol_digest character varying(64) NOT NULL,
    spec json NOT NULL,
    idempotency_key character varying(255),
    request_digest character varying(64) NOT NULL,
    created_at timestamp with time zone NOT NULL
);
CREATE SEQUENCE public.experiments_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.experiments_id_seq OWNED BY public.experiments.id;
CREATE TABLE public.runs (
    id character varying(32) NOT NULL,
    experiment_id integer NOT NULL,
    state character varying(16) NOT NULL,
    reason character varying(32),
    message character varying(500),
    attempt integer NOT NULL,
    last_event integer NOT NULL,
    not_before timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    started_at timestamp with time zone,
    ended_at timestamp with time zone,
    cancel_requested_at timestamp with time zone,
    stage character varying(16),
    step integer NOT NULL,
    total_steps integer NOT NULL,
    seconds_left double precision,
    mlflow_url character varying(500)
);
CREATE TABLE public.scheduler_lease (
    id integer NOT NULL,
    holder character varying(64) NOT NULL,
    until double precision NOT NULL
);
CREATE SEQUENCE public.scheduler_lease_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.scheduler_lease_id_seq OWNED BY public.scheduler_lease.id;
CREATE TABLE public.stage_reports (
    run_id character varying(32) NOT NULL,
    stage character varying(16) NOT NULL,
    attempt integer NOT NULL,
    report json NOT NULL
);
CREATE TABLE public.tracking_cursors (
    run_id character varying(32) NOT NULL,
    mlflow_run_id character varying(64),
    last_seq integer NOT NULL,
    closed boolean NOT NULL
);
ALTER TABLE ONLY public.events ALTER COLUMN id SET DEFAULT nextval('public.events_id_seq'::regclass);
ALTER TABLE ONLY public.experiments ALTER COLUMN id SET DEFAULT nextval('public.experiments_id_seq'::regclass);
ALTER TABLE ONLY public.scheduler_lease ALTER COLUMN id SET DEFAULT nextval('public.scheduler_lease_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0001');
INSERT INTO public.attempts VALUES ('0mwva98o7npuy5', 1, '2026-11-24 22:45:24.034291+00', '2026-11-24 22:45:23.864015+00', '2026-11-24 22:45:24.549608+00', 4, 9.5, 3000000000000, 128);
INSERT INTO public.attempts VALUES ('0mwva98ps5v7uo', 1, '2026-11-24 22:45:24.130391+00', '2026-11-24 22:45:23.864022+00', '2026-11-24 22:45:24.69151+00', 2, 4, 0, 0);
INSERT INTO public.attempts VALUES ('0mwva98r7tmz0j', 1, '2026-11-24 22:45:24.225542+00', '2026-11-24 22:45:23.864023+00', NULL, 1, 0, 0, 0);
INSERT INTO public.events VALUES (1, '0mwva98o7npuy5', 1, '2026-11-24 22:45:23.652885+00', 'state', '{"state": "QUEUED", "reason": null, "attempt": 0, "message": null}');
INSERT INTO public.events VALUES (2, '0mwva98ps5v7uo', 1, '2026-11-24 22:45:23.696162+00', 'state', '{"state": "QUEUED", "reason": null, "attempt": 0, "message": null}');
INSERT INTO public.events VALUES (3, '0mwva98r7tmz0j', 1, '2026-11-24 22:45:23.741325+00', 'state', '{"state": "QUEUED", "reason": null, "attempt": 0, "message": null}');
INSERT INTO public.events VALUES (4, '0mwva98o7npuy5', 2, '2026-11-24 22:45:23.878564+00', 'state', '{"state": "STARTING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO public.events VALUES (5, '0mwva98ps5v7uo', 2, '2026-11-24 22:45:23.87857+00', 'state', '{"state": "STARTING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO public.events VALUES (6, '0mwva98r7tmz0j', 2, '2026-11-24 22:45:23.878571+00', 'state', '{"state": "STARTING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO public.events VALUES (7, '0mwva98o7npuy5', 3, '2026-11-24 22:45:24.394587+00', 'attempt', '{"run_id": "0mwva98o7npuy5", "attempt": 1, "seq": 1, "at": 1795560324.2789288, "body": {"type": "attempt_started", "host": "h", "pid": 1, "device": "cpu", "versions": {}}}');
INSERT INTO public.events VALUES (8, '0mwva98o7npuy5', 4, '2026-11-24 22:45:24.394591+00', 'state', '{"state": "RUNNING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO public.events VALUES (9, '0mwva98o7npuy5', 5, '2026-11-24 22:45:24.446631+00', 'attempt', '{"run_id": "0mwva98o7npuy5", "attempt": 1, "seq": 2, "at": 1795560324.2823014, "body": {"type": "progress", "stage": "finetune", "step": 3, "total_steps": 8, "seconds_left": null, "values": {}, "spend": {"device_seconds": 2.0, "flops": 3000000000000.0, "training_images": 128}}}');
INSERT INTO public.events VALUES (10, '0mwva98o7npuy5', 6, '2026-11-24 22:45:24.491557+00', 'attempt', '{"run_id": "0mwva98o7npuy5", "attempt": 1, "seq": 3, "at": 1795560324.2854776, "body": {"type": "stage_done", "report": {"stage": "evaluate", "key": "k", "artifacts": {}, "metrics": {"fid40/fashion-cnn": 5.0, "num_params": 100.0, "flops_per_image": 1000.0}, "spend": {"device_seconds": 1.5, "flops": 3000000000000.0, "training_images": 0}, "stop_cause": "completed"}}}');
INSERT INTO public.events VALUES (11, '0mwva98o7npuy5', 7, '2026-11-24 22:45:24.554548+00', 'attempt', '{"run_id": "0mwva98o7npuy5", "attempt": 1, "seq": 4, "at": 1795560324.2871659, "body": {"type": "attempt_succeeded", "spend": {"device_seconds": 9.5, "flops": 0.0, "training_images": 0}}}');
INSERT INTO public.events VALUES (12, '0mwva98o7npuy5', 8, '2026-11-24 22:45:24.575378+00', 'state', '{"state": "SUCCEEDED", "reason": null, "attempt": 1, "message": null}');
INSERT INTO public.events VALUES (13, '0mwva98ps5v7uo', 3, '2026-11-24 22:45:24.650646+00', 'attempt', '{"run_id": "0mwva98ps5v7uo", "attempt": 1, "seq": 1, "at": 1795560324.292505, "body": {"type": "attempt_started", "host": "h", "pid": 1, "device": "cpu", "versions": {}}}');
INSERT INTO public.events VALUES (14, '0mwva98ps5v7uo', 4, '2026-11-24 22:45:24.650651+00', 'state', '{"state": "RUNNING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO public.events VALUES (15, '0mwva98ps5v7uo', 5, '2026-11-24 22:45:24.69461+00', 'attempt', '{"run_id": "0mwva98ps5v7uo", "attempt": 1, "seq": 2, "at": 1795560324.2944684, "body": {"type": "attempt_failed", "reason": "diverged", "message": "a loss of nan", "spend": {"device_seconds": 4.0, "flops": 0.0, "training_images": 0}}}');
INSERT INTO public.events VALUES (16, '0mwva98ps5v7uo', 6, '2026-11-24 22:45:24.694615+00', 'state', '{"state": "FAILED", "reason": "diverged", "attempt": 1, "message": "a loss of nan"}');
INSERT INTO public.events VALUES (17, '0mwva98r7tmz0j', 3, '2026-11-24 22:45:24.76763+00', 'attempt', '{"run_id": "0mwva98r7tmz0j", "attempt": 1, "seq": 1, "at": 1795560324.2985523, "body": {"type": "attempt_started", "host": "h", "pid": 1, "device": "cpu", "versions": {}}}');
INSERT INTO public.events VALUES (18, '0mwva98r7tmz0j', 4, '2026-11-24 22:45:24.767634+00', 'state', '{"state": "RUNNING", "reason": null, "attempt": 1, "message": null}');
INSERT INTO public.events VALUES (19, '0mwva99lilsozz', 1, '2026-11-24 22:45:24.851018+00', 'state', '{"state": "QUEUED", "reason": null, "attempt": 0, "message": null}');
INSERT INTO public.experiments VALUES (1, 'done', 'testbed/dit-fashion', 'f9de90bd097b2d57c128975bcda0482d683574ad7be7b19a532171449a950595', '6e6aa994e89574f4b2f23f2b308d7929c4e46e49833177339eefe2b29a4c55ed', '{"name": "done", "design": {"backbone": {"name": "testbed/dit-fashion", "digest": "dc69d050ebfa9e415b378633fe3b55ea3b15616e9933e71822bf224f42b99953"}, "edits": [{"site": {"block": 1, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}, {"site": {"block": 3, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}]}, "distill": {"steps": 6, "batch_size": 16, "learning_rate": 0.002, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "attention_loss": "l1", "mlp_loss": "l2", "images": 200, "held_out": 16, "seed": 0}, "finetune": {"steps": 8, "batch_size": 16, "learning_rate": 0.0003, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "ema_decay": 0.98, "label_dropout": 0.1, "images": 200, "seed": 0}, "evaluate": {"samples": 40, "sampler": "ddim", "sampling_steps": 3, "guidance": 1.5, "guidance_channels": "all", "labels": "balanced", "feature_network": "fashion-cnn", "micro_batch": 10, "seed": 0}, "budget": {"device_seconds": null, "flops": null, "training_images": null}, "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}}', 'done', '0000000000000000000000000000000000000000000000000000000000000000', '2026-11-24 22:45:23.627972+00');
INSERT INTO public.experiments VALUES (2, 'failed', 'testbed/dit-fashion', 'fd696567bcd4f61864535aa7aa9955fe31e8108056f942eed5df37dddd258c6d', '6e6aa994e89574f4b2f23f2b308d7929c4e46e49833177339eefe2b29a4c55ed', '{"name": "failed", "design": {"backbone": {"name": "testbed/dit-fashion", "digest": "dc69d050ebfa9e415b378633fe3b55ea3b15616e9933e71822bf224f42b99953"}, "edits": [{"site": {"block": 2, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}]}, "distill": {"steps": 6, "batch_size": 16, "learning_rate": 0.002, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "attention_loss": "l1", "mlp_loss": "l2", "images": 200, "held_out": 16, "seed": 0}, "finetune": {"steps": 8, "batch_size": 16, "learning_rate": 0.0003, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "ema_decay": 0.98, "label_dropout": 0.1, "images": 200, "seed": 0}, "evaluate": {"samples": 40, "sampler": "ddim", "sampling_steps": 3, "guidance": 1.5, "guidance_channels": "all", "labels": "balanced", "feature_network": "fashion-cnn", "micro_batch": 10, "seed": 0}, "budget": {"device_seconds": null, "flops": null, "training_images": null}, "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}}', 'failed', '0000000000000000000000000000000000000000000000000000000000000000', '2026-11-24 22:45:23.681464+00');
INSERT INTO public.experiments VALUES (3, 'running', 'testbed/dit-fashion', '64f7a0c5fd824d0068f4f5bc8343c45ccd6e41fbabf4502e842f61fb357cf501', '6e6aa994e89574f4b2f23f2b308d7929c4e46e49833177339eefe2b29a4c55ed', '{"name": "running", "design": {"backbone": {"name": "testbed/dit-fashion", "digest": "dc69d050ebfa9e415b378633fe3b55ea3b15616e9933e71822bf224f42b99953"}, "edits": [{"site": {"block": 4, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}]}, "distill": {"steps": 6, "batch_size": 16, "learning_rate": 0.002, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "attention_loss": "l1", "mlp_loss": "l2", "images": 200, "held_out": 16, "seed": 0}, "finetune": {"steps": 8, "batch_size": 16, "learning_rate": 0.0003, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "ema_decay": 0.98, "label_dropout": 0.1, "images": 200, "seed": 0}, "evaluate": {"samples": 40, "sampler": "ddim", "sampling_steps": 3, "guidance": 1.5, "guidance_channels": "all", "labels": "balanced", "feature_network": "fashion-cnn", "micro_batch": 10, "seed": 0}, "budget": {"device_seconds": null, "flops": null, "training_images": null}, "resources": {"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0}}', 'running', '0000000000000000000000000000000000000000000000000000000000000000', '2026-11-24 22:45:23.732084+00');
INSERT INTO public.experiments VALUES (4, 'waiting', 'testbed/dit-fashion', 'ca424a63490d93ba6666f4758584455d8b0dc7424818b83dab90913fd947ab89', '6e6aa994e89574f4b2f23f2b308d7929c4e46e49833177339eefe2b29a4c55ed', '{"name": "waiting", "design": {"backbone": {"name": "testbed/dit-fashion", "digest": "dc69d050ebfa9e415b378633fe3b55ea3b15616e9933e71822bf224f42b99953"}, "edits": [{"site": {"block": 5, "slot": "attention"}, "operator": {"kind": "hyena_x", "kernel_size": 4}, "init": "random"}]}, "distill": {"steps": 6, "batch_size": 16, "learning_rate": 0.002, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "attention_loss": "l1", "mlp_loss": "l2", "images": 200, "held_out": 16, "seed": 0}, "finetune": {"steps": 8, "batch_size": 16, "learning_rate": 0.0003, "schedule": "cosine", "warmup_steps": 20, "weight_decay": 0.0, "clip_norm": 10.0, "ema_decay": 0.98, "label_dropout": 0.1, "images": 200, "seed": 0}, "evaluate": {"samples": 40, "sampler": "ddim", "sampling_steps": 3, "guidance": 1.5, "guidance_channels": "all", "labels": "balanced", "feature_network": "fashion-cnn", "micro_batch": 10, "seed": 0}, "budget": {"device_seconds": null, "flops": null, "training_images": null}, "resources": {"workers": 2, "cpus_per_worker": 1, "gpus_per_worker": 0}}', 'waiting', '0000000000000000000000000000000000000000000000000000000000000000', '2026-11-24 22:45:24.830477+00');
INSERT INTO public.runs VALUES ('0mwva98o7npuy5', 1, 'SUCCEEDED', NULL, NULL, 1, 8, NULL, '2026-11-24 22:45:23.644679+00', '2026-11-24 22:45:24.387997+00', '2026-11-24 22:45:24.574916+00', NULL, 'finetune', 3, 8, NULL, NULL);
INSERT INTO public.runs VALUES ('0mwva98ps5v7uo', 2, 'FAILED', 'diverged', 'a loss of nan', 1, 6, NULL, '2026-11-24 22:45:23.690673+00', '2026-11-24 22:45:24.64836+00', '2026-11-24 22:45:24.691532+00', NULL, NULL, 0, 0, NULL, NULL);
INSERT INTO public.runs VALUES ('0mwva98r7tmz0j', 3, 'RUNNING', NULL, NULL, 1, 4, NULL, '2026-11-24 22:45:23.738695+00', '2026-11-24 22:45:24.766036+00', NULL, NULL, NULL, 0, 0, NULL, NULL);
INSERT INTO public.runs VALUES ('0mwva99lilsozz', 4, 'QUEUED', NULL, NULL, 0, 1, NULL, '2026-11-24 22:45:24.832564+00', NULL, NULL, NULL, NULL, 0, 0, NULL, NULL);
INSERT INTO public.scheduler_lease VALUES (1, 'vm-32682-2b6a9ee5', 1795560339.310913);
INSERT INTO public.stage_reports VALUES ('0mwva98o7npuy5', 'evaluate', 1, '{"stage": "evaluate", "key": "k", "artifacts": {}, "metrics": {"fid40/fashion-cnn": 5.0, "num_params": 100.0, "flops_per_image": 1000.0}, "spend": {"device_seconds": 1.5, "flops": 3000000000000.0, "training_images": 0}, "stop_cause": "completed"}');
SELECT pg_catalog.setval('public.events_id_seq', 19, true);
SELECT pg_catalog.setval('public.experiments_id_seq', 4, true);
SELECT pg_catalog.setval('public.scheduler_lease_id_seq', 1, false);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_pkey PRIMARY KEY (run_id, number);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.experiments
    ADD CONSTRAINT experiments_idempotency_key_key UNIQUE (idempotency_key);
ALTER TABLE ONLY public.experiments
    ADD CONSTRAINT experiments_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.scheduler_lease
    ADD CONSTRAINT scheduler_lease_pkey PRIMARY KEY (id);
ALTER TABLE ONLY public.stage_reports
    ADD CONSTRAINT stage_reports_pkey PRIMARY KEY (run_id, stage);
ALTER TABLE ONLY public.tracking_cursors
    ADD CONSTRAINT tracking_cursors_pkey PRIMARY KEY (run_id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT uq_events_run_id_seq UNIQUE (run_id, seq);
CREATE INDEX ix_experiments_digest ON public.experiments USING btree (digest);
CREATE INDEX ix_runs_created_at ON public.runs USING btree (created_at);
CREATE INDEX ix_runs_state_created_at ON public.runs USING btree (state, created_at);
ALTER TABLE ONLY public.attempts
    ADD CONSTRAINT attempts_run_id_fkey FOREIGN KEY (run_id) REFERENCES public.runs(id);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_run_id_fkey FOREIGN KEY (run_id) REFERENCES public.runs(id);
ALTER TABLE ONLY public.runs
    ADD CONSTRAINT runs_experiment_id_fkey FOREIGN KEY (experiment_id) REFERENCES public.experiments(id);
ALTER TABLE ONLY public.stage_reports
    ADD CONSTRAINT stage_reports_run_id_fkey FOREIGN KEY (run_id) REFERENCES public.runs(id);
ALTER TABLE ONLY public.tracking_cursors
    ADD CONSTRAINT tracking_cursors_run_id_fkey FOREIGN KEY (run_id) REFERENCES public.runs(id);
