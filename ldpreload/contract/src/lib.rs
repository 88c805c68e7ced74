#![no_std]
//! The bytes between libudsproxy.so and udsproxyd.
