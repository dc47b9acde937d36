"""Prepare datasets: conversion and checking."""
